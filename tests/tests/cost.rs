//! What a token of the real target costs: the numbers are the sums of its tensors' sizes, taken by hand.

use moe_run_graph::{
    architectures::lower_file,
    cost::{Cost, step_cost},
    gguf::GgufFile,
    ir::StepSizes,
    passes::{PlanOptions, TapSelection, none_alone, plan},
    synth::{Preset, Synth, SynthOptions},
};

/// A step of the 48-layer model, each node a launch, f16 cache.
fn cost(sizes: StepSizes) -> Cost {
    let preset = Preset::by_name("qwen3-coder-30b-a3b").expect("the preset");
    let options = SynthOptions { preset, num_hidden_layers: None, seed: 0, vocabulary: None, format: None };
    let synth = Synth::new(&options).expect("a layout");
    // A sparse file: the header is all that is read.
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), synth.layout().header()).expect("written");
    file.as_file().set_len(synth.layout().file_bytes() as u64).expect("a sparse file");
    let file = GgufFile::open(file.path()).expect("readable");
    let (_, graph) = lower_file(&file).expect("lowered");
    let options =
        PlanOptions { taps: &TapSelection::None, patterns: &[], alone: &none_alone, max_sizes: sizes };
    step_cost(&plan(&graph, &options).expect("planned"), sizes, &|elems| elems * 2)
}

#[test]
fn a_decoded_token_reads_its_experts_and_not_the_others() {
    let cost = cost(StepSizes { tokens: 1, logits_rows: 1, cached: 1 });
    // Rows of 2048 take 1152 bytes in Q4_K and 1680 in Q6_K, rows of 768 take 432 and 630, rows of 4096 2304.
    let (q4, q6) = (1152u64, 1680u64);
    let experts = 48 * 8 * 2 * 768 * q4 + 24 * 8 * 2048 * (432 + 630);
    let attention = 48 * (4096 + 512) * q4 + 24 * 512 * (q4 + q6) + 48 * 2048 * 2304;
    let router = 48 * 128 * 2048 * 4;
    let norms = 48 * (2 * 2048 + 2 * 128) * 4 + 2048 * 4;
    let (embedding, lm_head) = (q4, 151_936 * q6);
    assert_eq!(cost.weight_bytes, experts + attention + router + norms + embedding + lm_head);
    assert!((1.91e9..1.93e9).contains(&(cost.weight_bytes as f64)), "{}", cost.weight_bytes);
}

#[test]
fn the_cache_costs_its_rows_once_a_token_and_a_prompt_reads_every_expert() {
    // K and V of 4 heads of 128 in 48 layers: each row written once and every row read once.
    let deep = cost(StepSizes { tokens: 1, logits_rows: 1, cached: 4096 });
    assert_eq!(deep.state_bytes, 48 * 2 * 512 * 2 * (4096 + 1));
    let prompt = cost(StepSizes { tokens: 512, logits_rows: 1, cached: 512 });
    assert!((17.5e9..18.7e9).contains(&(prompt.weight_bytes as f64)), "{}", prompt.weight_bytes);
    // Products of a token: two operations a weight of its experts, attention and router; one row of logits.
    let weights = 48 * (8 * 3 * 768 * 2048 + (4096 + 1024 + 4096 + 128) * 2048) as u64;
    let attention = 48 * 2 * 32 * 256 * (512 * 513 / 2) as u64;
    assert_eq!(prompt.flops, 512 * 2 * weights + 2 * 151_936 * 2048 + attention);
}
