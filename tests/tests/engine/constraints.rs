//! Requests that are held to a form.

use super::*;

/// Allows tokens of one remainder, then of the next one; and may fail, or be complete.
#[derive(Default)]
struct Remainders {
    next: u32,
    fails_after: Option<usize>,
    ends_after: Option<usize>,
    words: Vec<u32>,
    /// The threads that asked what is allowed, in order.
    asked_on: Arc<Mutex<Vec<Option<String>>>>,
}

impl Remainders {
    fn boxed(
        next: u32,
        fails_after: Option<usize>,
        ends_after: Option<usize>,
    ) -> Option<Box<dyn Constraint>> {
        Some(Box::new(Remainders { next, fails_after, ends_after, ..Remainders::default() }))
    }
}

impl Constraint for Remainders {
    fn allowed(&mut self) -> Result<&[u32], ConstraintFailure> {
        self.asked_on.lock().unwrap().push(std::thread::current().name().map(str::to_owned));
        if self.fails_after == Some(0) {
            return Err("it costs too much".into());
        }
        let bit = |id: u32| u32::from(id % 7 == self.next) << (id % 32);
        self.words = (0..4096u32).map(|word| (0..32).map(|at| bit(32 * word + at)).sum()).collect();
        Ok(&self.words)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintFailure> {
        assert_eq!(token.0 % 7, self.next);
        self.next = (self.next + 1) % 7;
        self.fails_after = self.fails_after.map(|left| left - 1);
        self.ends_after = self.ends_after.map(|left| left - 1);
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.ends_after == Some(0)
    }
}

#[test]
fn tokens_are_held_to_a_form_and_their_probabilities_are_the_untouched_ones() {
    let Some(model) = zoo() else { return };
    let mut scheduler =
        Scheduler::new(sequences(&model, Activations::Q8, CONTEXT, 2), settings(true)).unwrap();
    let sampler = SamplerOptions { temperature: 1.0, seed: 4, ..SamplerOptions::GREEDY };
    for sampler in [SamplerOptions::GREEDY, sampler] {
        let asked = (asked(&model, 2).0, Choose { logprobs: Some(2), ..Choose::by(sampler) }, 10);
        let recorders: [Recorder; 3] = Default::default();
        let asked_on = Arc::default();
        let held = Remainders { next: 3, asked_on: Arc::clone(&asked_on), ..Remainders::default() };
        let constraints: [Option<Box<dyn Constraint>>; 3] =
            [Some(Box::new(held)), Remainders::boxed(0, Some(4), None), Remainders::boxed(5, None, Some(6))];
        for (recorder, constraint) in recorders.iter().zip(constraints) {
            scheduler.submit(Request { constraint, ..request(&asked, recorder) });
        }
        while !scheduler.is_idle() {
            scheduler.step();
        }
        let [held, broken, complete] = recorders.map(|recorder| recorder.heard.lock().unwrap().clone());
        assert_eq!(held.ended.as_ref().unwrap().reason, EndReason::MaxTokens);
        // Each token's was found beside the step that computed its logits, and told again when they were there.
        let asked_on = asked_on.lock().unwrap();
        let is_beside = |name: &Option<String>| name.as_deref() == Some("constraints");
        assert!(
            asked_on.len() == 20 && asked_on.chunks(2).all(|two| is_beside(&two[0]) && !is_beside(&two[1]))
        );
        for (at, (token, logprob, top)) in held.tokens.iter().enumerate() {
            assert_eq!(token.0 % 7, (3 + at as u32) % 7);
            assert!(f32::from_bits(logprob.unwrap()) <= f32::from_bits(top[0].1));
        }
        assert_eq!(broken.tokens.len(), 4);
        let ended = broken.ended.as_ref().unwrap();
        assert!(
            matches!(&ended.reason, EndReason::NotHeld(why) if why.contains("costs too much")),
            "{ended:?}"
        );
        assert_eq!(
            (complete.tokens.len(), &complete.ended.as_ref().unwrap().reason),
            (6, &EndReason::Complete)
        );
    }
}
