//! Draws against a plain definition, candidates against all logits, refusals.

use super::*;

/// The first outputs that the authors' C code gives.
#[test]
fn the_generator_is_xoshiro() {
    let mut random = Xoshiro256PlusPlus { state: [1, 2, 3, 4] };
    for expected in [41943041, 58720359, 3588806011781223, 3591011842654386, 9228616714210784205] {
        assert_eq!(random.next_u64(), expected);
    }
    // splitmix64 from 1234567.
    let seeded = Xoshiro256PlusPlus::from_seed(1234567);
    assert_eq!(seeded.state[..3], [6457827717110365317, 3203168211198807973, 9817491932198370423]);
}

/// The definition, written plainly: probabilities in f64 over the whole vocabulary, 0 for what is cut off.
fn definition(o: &SamplerOptions, logits: &[f32], history: &[TokenId]) -> Vec<f64> {
    let penalized: Vec<f64> = logits
        .iter()
        .enumerate()
        .map(|(id, &l)| match history.contains(&TokenId(id as u32)) {
            true if l > 0.0 => f64::from(l / o.repetition_penalty),
            true => f64::from(l * o.repetition_penalty),
            false => f64::from(l),
        })
        .collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| penalized[b].total_cmp(&penalized[a]).then(a.cmp(&b)));
    if o.top_k > 0 {
        order.truncate(o.top_k);
    }
    let softmax = |order: &[usize]| -> Vec<f64> {
        let e: Vec<f64> = order
            .iter()
            .map(|&i| ((penalized[i] - penalized[order[0]]) / f64::from(o.temperature)).exp())
            .collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|x| x / sum).collect()
    };
    let p = softmax(&order);
    let mut keep = 0;
    let mut sum = 0.0;
    while keep < order.len() && (sum < f64::from(o.top_p) || o.top_p == 1.0) {
        sum += p[keep];
        keep += 1;
    }
    order.truncate(keep);
    let keep = order.iter().zip(&p).filter(|(_, pi)| **pi >= f64::from(o.min_p) * p[0]).count();
    order.truncate(keep.max(1));
    let mut all = vec![0.0; logits.len()];
    for (&id, p) in order.iter().zip(softmax(&order)) {
        all[id] = p;
    }
    all
}

fn random_case(random: &mut Xoshiro256PlusPlus) -> (SamplerOptions, Vec<f32>, Vec<TokenId>) {
    let mut pick = |n: u64| random.next_u64() % n;
    let len = 1 + [40, 40, 40, 300][pick(4) as usize];
    let len = 1 + pick(len);
    // Quarters: equal logits are common, so ties are tested.
    let logits: Vec<f32> = (0..len).map(|_| pick(64) as f32 / 4.0 - 8.0).collect();
    let history = (0..pick(6)).map(|_| TokenId(pick(len) as u32)).collect();
    let options = SamplerOptions {
        temperature: [0.1, 0.7, 1.0, 3.0][pick(4) as usize],
        top_k: [0, 1, 3, 20, 100, 129][pick(6) as usize],
        top_p: [1.0, 0.95, 0.8, 0.3, 1e-6][pick(5) as usize],
        min_p: [0.0, 0.05, 0.5, 1.0][pick(4) as usize],
        repetition_penalty: [1.0, 1.1, 2.0, 0.5][pick(4) as usize],
        seed: pick(1000),
    };
    (options, logits, history)
}

#[test]
fn the_distribution_is_the_definition() {
    let mut random = Xoshiro256PlusPlus::from_seed(7);
    for _ in 0..20_000 {
        let (options, logits, history) = random_case(&mut random);
        let wanted = definition(&options, &logits, &history);
        let mut sampler = Sampler::new(options).unwrap();
        let mut found = vec![0.0; logits.len()];
        for candidate in sampler.distribution(&logits, &history).unwrap() {
            assert_eq!(found[candidate.token.index()], 0.0);
            found[candidate.token.index()] = candidate.probability;
        }
        let worst = found.iter().zip(&wanted).map(|(f, w)| (f - w).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-12, "{options:?} {logits:?} {history:?}: {found:?}, wanted {wanted:?}");
    }
}

/// Candidates alone give the token that all logits give, for every seed, or say that they do not do and use no random number.
#[test]
fn candidates_draw_what_all_logits_draw() {
    let mut random = Xoshiro256PlusPlus::from_seed(11);
    let (mut best, mut plain, mut sure, mut unsure) = (Vec::new(), 0, 0, 0);
    for i in 0..40_000 {
        let (mut options, logits, mut history) = random_case(&mut random);
        if i % 5 == 0 {
            options.temperature = 0.0;
        }
        if i % 3 == 0 {
            // The best half occurred: more than the candidates that are asked for.
            history.extend((0u32..).zip(&logits).filter(|(_, l)| **l > 0.0).map(|(id, _)| TokenId(id)));
        }
        let mut whole = Sampler::new(options).unwrap();
        let Some(count) = whole.candidates_wanted() else {
            let (penalty, greedy) = (options.repetition_penalty, options.temperature == 0.0);
            let all =
                options.top_k == 0 || options.top_k > MAX_CANDIDATES / if penalty == 1.0 { 1 } else { 2 };
            assert!(penalty < 1.0 || all && !greedy, "{options:?}");
            continue;
        };
        let mut from_candidates = whole.clone();
        crate::choice::best_candidates(&logits, count, &mut best).unwrap();
        for _ in 0..3 {
            let wanted = whole.sample(&logits, &history).unwrap();
            let found = from_candidates.sample_candidates(&best, &history).unwrap();
            match (found, options.repetition_penalty == 1.0) {
                (Some(token), is_plain) => {
                    assert_eq!(token, wanted, "{options:?} {logits:?} {history:?}");
                    assert!(options.temperature == 0.0 || from_candidates.candidates == whole.candidates);
                    *if is_plain { &mut plain } else { &mut sure } += 1;
                }
                (None, is_plain) => {
                    assert!(!is_plain && logits.len() > count, "{options:?} {logits:?} {history:?}");
                    assert_eq!(from_candidates.sample(&logits, &history), Ok(wanted));
                    unsure += 1;
                }
            }
        }
    }
    assert!(plain > 5000 && sure > 5000 && unsure > 100, "{plain} {sure} {unsure}");
}

#[test]
fn candidates_that_cannot_be_drawn_from() {
    let mut sampler =
        Sampler::new(SamplerOptions { temperature: 1.0, top_k: 2, ..SamplerOptions::GREEDY }).unwrap();
    assert_eq!(sampler.sample_candidates(&[], &[]), Err(SamplerError::NoCandidate));
    let infinite = sampler.sample_candidates(&[(TokenId(3), f32::INFINITY)], &[]);
    assert!(matches!(infinite, Err(SamplerError::NotFinite { token: TokenId(3), .. })));
    // A penalty so great that nothing is left.
    let options =
        SamplerOptions { temperature: 1.0, top_k: 2, repetition_penalty: 1e38, ..SamplerOptions::GREEDY };
    let mut sampler = Sampler::new(options).unwrap();
    let gone = [(TokenId(3), -1e3)];
    assert_eq!(sampler.sample_candidates(&gone, &[TokenId(3)]), Err(SamplerError::NoCandidate));
    assert_eq!(sampler.sample_candidates(&gone, &[TokenId(4)]), Ok(Some(TokenId(3))));
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [1.0, 3.0, -2.0, 2.5, 0.0, 2.5];
    let options = SamplerOptions { temperature: 0.9, seed: 3, ..SamplerOptions::GREEDY };
    let wanted = definition(&options, &logits, &[]);
    let mut sampler = Sampler::new(options).unwrap();
    const DRAWS: usize = 200_000;
    let mut counts = [0usize; 6];
    for _ in 0..DRAWS {
        counts[sampler.sample(&logits, &[]).unwrap().index()] += 1;
    }
    for (&count, &p) in counts.iter().zip(&wanted) {
        // Five standard deviations of a binomial count.
        let bound = 5.0 * (DRAWS as f64 * p * (1.0 - p)).sqrt();
        assert!((count as f64 - DRAWS as f64 * p).abs() < bound, "{counts:?}, wanted shares {wanted:?}");
    }
}

#[test]
fn one_seed_one_text() {
    let texts = |seed| {
        let options = SamplerOptions { temperature: 1.0, seed, ..SamplerOptions::GREEDY };
        let mut sampler = Sampler::new(options).unwrap();
        (0..50).map(|_| sampler.sample(&[0.0; 100], &[]).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(texts(5), texts(5));
    assert_ne!(texts(5), texts(6));
}

#[test]
fn greedy_takes_the_lowest_id_of_equals_and_heeds_the_penalty() {
    let mut greedy = Sampler::new(SamplerOptions::GREEDY).unwrap();
    assert_eq!(greedy.sample(&[1.0, 5.0, 5.0, f32::NEG_INFINITY], &[]), Ok(TokenId(1)));
    assert!(greedy.is_plain_argmax());
    let penalty = SamplerOptions { repetition_penalty: 2.0, ..SamplerOptions::GREEDY };
    let mut penalized = Sampler::new(penalty).unwrap();
    assert!(!penalized.is_plain_argmax());
    assert_eq!(penalized.sample(&[4.0, 5.0, 3.0], &[TokenId(1), TokenId(1)]), Ok(TokenId(0)));
    assert_eq!(penalized.sample(&[-4.0, -3.0], &[TokenId(1)]), Ok(TokenId(0)));
    // A penalty must not bring back what is impossible.
    assert_eq!(penalized.sample(&[-1.0, f32::NEG_INFINITY], &[TokenId(1)]), Ok(TokenId(0)));
}

#[test]
fn extreme_logits_and_temperatures() {
    let options = SamplerOptions { temperature: 1e-30, ..SamplerOptions::GREEDY };
    let mut cold = Sampler::new(options).unwrap();
    assert_eq!(cold.sample(&[f32::MAX, f32::MIN, 0.0], &[]), Ok(TokenId(0)));
    assert_eq!(cold.sample(&[-1e38, -1.1e38], &[]), Ok(TokenId(0)));
}

#[test]
fn what_is_not_a_number_is_named() {
    for options in [SamplerOptions::GREEDY, SamplerOptions { temperature: 1.0, ..SamplerOptions::GREEDY }] {
        let mut sampler = Sampler::new(options).unwrap();
        let error = sampler.sample(&[0.0, f32::NAN, f32::INFINITY], &[]).unwrap_err();
        assert!(error.to_string().contains("token 1: found NaN"), "{error}");
        let infinite = sampler.sample(&[0.0, f32::INFINITY], &[]);
        assert!(matches!(infinite, Err(SamplerError::NotFinite { token: TokenId(1), .. })));
        assert_eq!(sampler.sample(&[], &[]), Err(SamplerError::NoCandidate));
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 3], &[]), Err(SamplerError::NoCandidate));
    }
    let penalty = SamplerOptions { repetition_penalty: 1.5, ..SamplerOptions::GREEDY };
    let unknown = Sampler::new(penalty).unwrap().sample(&[0.0], &[TokenId(1)]);
    assert_eq!(unknown, Err(SamplerError::UnknownToken { token: TokenId(1), vocab_size: 1 }));
}

#[test]
fn options_outside_of_their_range_are_named() {
    let g = SamplerOptions::GREEDY;
    for (options, name) in [
        (SamplerOptions { temperature: -1.0, ..g }, "temperature"),
        (SamplerOptions { temperature: f32::NAN, ..g }, "temperature"),
        (SamplerOptions { top_p: 0.0, ..g }, "top_p"),
        (SamplerOptions { top_p: 1.5, ..g }, "top_p"),
        (SamplerOptions { min_p: f32::NAN, ..g }, "min_p"),
        (SamplerOptions { repetition_penalty: 0.0, ..g }, "repetition_penalty"),
    ] {
        assert!(matches!(Sampler::new(options), Err(SamplerError::Option { name: n, .. }) if n == name));
    }
}

#[test]
fn only_allowed_tokens_are_chosen() {
    let mut sampler = Sampler::new(SamplerOptions::GREEDY).unwrap();
    let logits: Vec<f32> = (0..70).map(|id| id as f32).collect();
    let mut choose =
        |allowed: &[u32], logits: &[f32]| sampler.sample_allowed(&mut logits.to_vec(), allowed, &[]);
    assert_eq!(choose(&[1 << 3 | 1 << 7, 0, 0], &logits), Ok(TokenId(7)));
    assert_eq!(choose(&[0, 1 << 31, 0], &logits), Ok(TokenId(63)));
    // What has no bit is not allowed.
    assert_eq!(choose(&[u32::MAX], &logits), Ok(TokenId(31)));
    assert_eq!(choose(&[0, 0, 0], &logits), Err(SamplerError::NoCandidate));
    let mut broken = logits.clone();
    broken[5] = f32::NAN;
    assert!(matches!(choose(&[1, 0, 0], &broken), Err(SamplerError::NotFinite { token: TokenId(5), .. })));
}
