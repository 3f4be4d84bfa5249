//! The cache in a file.

use super::*;
use moe_run_backends::reference::Reference;

/// What one run computed serves the next one, with the same bits; a file that is not what was written is refused, and leaves nothing.
#[test]
fn a_cache_goes_to_a_file_and_comes_back() {
    let Some(model) = zoo() else { return };
    let asked: Vec<_> = (0..6).map(|number| asked(&model, number)).collect();
    let mut single = Scheduler::new(sequences(&model, Activations::Q8, CONTEXT, 1), settings(false)).unwrap();
    let wanted: Vec<Heard> = asked.iter().map(|asked| alone(&mut single, asked)).collect();
    let run = |scheduler: &mut Scheduler| {
        let mut cached = Vec::new();
        for (asked, wanted) in asked.iter().zip(&wanted) {
            let recorder = Recorder::default();
            scheduler.submit(request(asked, &recorder));
            while !scheduler.is_idle() {
                scheduler.step();
            }
            let heard = recorder.heard.lock().unwrap();
            assert_eq!(heard.tokens, wanted.tokens);
            cached.push(heard.ended.as_ref().unwrap().usage.cached_tokens);
        }
        cached
    };
    let new = |pool| sequences(&model, Activations::Q8, pool, 2);
    let mut first = Scheduler::new(new(8 * CONTEXT), settings(true)).unwrap();
    let before = run(&mut first);
    let mut file = Vec::new();
    let blocks = first.into_sequences().save_cache("a model", &mut file).unwrap();
    assert!(blocks > 3);

    let mut second = new(8 * CONTEXT);
    assert_eq!(second.load_cache("a model", &mut file.as_slice()).unwrap(), blocks);
    let after = run(&mut Scheduler::new(second, settings(true)).unwrap());
    assert!(
        after.iter().zip(&before).all(|(after, before)| after >= before) && after > before,
        "{before:?} {after:?}"
    );
    // A smaller pool takes the latest, and what is saved again is the same.
    let mut small = new(CONTEXT);
    let room = small.free_tokens() / 64;
    assert_eq!(small.load_cache("a model", &mut file.as_slice()).unwrap(), blocks.min(room));
    let mut again = new(8 * CONTEXT);
    again.load_cache("a model", &mut file.as_slice()).unwrap();
    let mut same = Vec::new();
    again.save_cache("a model", &mut same).unwrap();
    assert!(same == file, "saved again, it is the same");

    let refused = |binding: &str, bytes: &[u8], words: &str| {
        let mut sequences = new(8 * CONTEXT);
        let error = sequences.load_cache(binding, &mut &*bytes).unwrap_err().to_string();
        assert!(error.contains(words), "{error}, wanted {words}");
        assert_eq!(sequences.free_tokens(), 8 * CONTEXT);
        assert!(asked.iter().all(|(prompt, ..)| sequences.shared_prefix(prompt).tokens == 0));
    };
    refused("another model", &file, "it holds what was computed with a model; wanted another model");
    refused("a model", b"GGUF and so on", "no cache file");
    refused("a model", b"", "no cache file");
    let mut random = Random::new(&[34]);
    for _ in 0..40 {
        let mut damaged = file.clone();
        let at = 8 + (random.next_u64() % (file.len() as u64 - 8)) as usize;
        damaged[at] ^= 1 << (random.next_u64() % 8);
        refused("a model", &damaged, "");
        refused("a model", &file[..at], "damaged");
    }
    let error = sequences_on(&Reference, &model, Activations::Q8, CONTEXT, 2).check_cache().unwrap_err();
    assert!(error.to_string().contains("no blocks"), "{error}");
}

/// What stands beside blocks, a sequence's own states and what windows hold, goes with them.
#[test]
fn a_cache_of_kept_states_goes_to_a_file_and_comes_back() {
    let (graph, weights) = recurrent::model().unwrap();
    let recurrent = Subject { graph, weights, vocab_size: recurrent::VOCAB };
    for model in [recurrent, windowed("arch/gemma4/a4b-q4_0.gguf"), windowed("arch/step35/flash-q4_0.gguf")] {
        let asked: Vec<_> = (0..6).map(|number| asked(&model, number)).collect();
        let new = || sequences(&model, Activations::Q8, 8 * CONTEXT, 2);
        let run = |sequences: Sequences| {
            let mut scheduler = Scheduler::new(sequences, settings(true)).unwrap();
            let mut heard = Vec::new();
            for asked in &asked {
                let recorder = Recorder::default();
                scheduler.submit(request(asked, &recorder));
                while !scheduler.is_idle() {
                    scheduler.step();
                }
                let heard_now = recorder.heard.lock().unwrap();
                let cached = heard_now.ended.as_ref().unwrap().usage.cached_tokens;
                heard.push((heard_now.tokens.clone(), cached));
            }
            (heard, scheduler.into_sequences())
        };
        let (before, first) = run(new());
        let mut file = Vec::new();
        first.save_cache("a model", &mut file).unwrap();
        let mut second = new();
        second.load_cache("a model", &mut file.as_slice()).unwrap();
        let mut same = Vec::new();
        second.save_cache("a model", &mut same).unwrap();
        assert!(same == file, "saved again, it is the same");
        let (after, _) = run(second);
        for ((before, was), (after, is)) in before.iter().zip(&after) {
            assert!(before == after && is >= was, "{was} tokens from the cache, then {is}");
        }
        let cached = |heard: &[(Vec<Told>, usize)]| heard.iter().map(|(_, cached)| cached).sum::<usize>();
        assert!(cached(&after) > cached(&before), "{} {}", cached(&after), cached(&before));
        let mut random = Random::new(&[35]);
        for _ in 0..20 {
            let mut damaged = file.clone();
            let at = 8 + (random.next_u64() % (file.len() as u64 - 8)) as usize;
            damaged[at] ^= 1 << (random.next_u64() % 8);
            for bytes in [&damaged[..], &file[..at]] {
                let mut sequences = new();
                sequences.load_cache("a model", &mut &*bytes).unwrap_err();
                assert!(asked.iter().all(|(prompt, ..)| sequences.shared_prefix(prompt).tokens == 0));
            }
        }
    }
}
