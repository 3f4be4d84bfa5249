//! What a trace says, as text and as JSON.

use std::fmt::Write as _;

use moe_run_graph::{
    ids::TokenId,
    ir::{Stage, StageScope},
    shown::shown,
};
use moe_run_inspect::taps::{
    number::Num,
    routing::LayerUse,
    stats::{Accumulator, StageStats, Stats},
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    engine::Engine,
    trace::{LAYER_FIELDS, Traced},
};

/// The version of the JSON's layout.
const SCHEMA_VERSION: u32 = 1;
/// Tokens that are listed with their logits.
const TOP_TOKENS: usize = 5;
/// A layer's output whose standard deviation is more than so many times the one before stands out.
const STD_DEV_JUMP: f64 = 8.0;

/// The JSON object; the text is made from it, so that the two never differ.
pub struct Report {
    /// What `--json` prints.
    pub json: Value,
}

#[derive(Serialize)]
struct StageEntry {
    stage: Stage,
    production: bool,
    #[serde(flatten)]
    stats: Stats,
}

impl Report {
    /// Gathers everything that is shown. `extra` are the stages of `--stages`.
    pub fn new(
        engine: &Engine,
        tokens: &[TokenId],
        traced: &Traced,
        last: u32,
        usage: &[LayerUse],
        extra: &[Stage],
    ) -> Report {
        let info = engine.session.info();
        let config = &engine.model.config;
        let attention = &config.layers[0].attention;
        let stage = |stage, layer| traced.stats.get(stage, layer).map_or(Value::Null, entry);
        let layers: Vec<Value> = (0..config.num_hidden_layers)
            .map(|i| {
                let mut layer = Map::new();
                layer.insert("layer_idx".into(), i.into());
                for (field, stages) in LAYER_FIELDS {
                    let found = stages.iter().find_map(|s| traced.stats.get(*s, Some(i)));
                    let mut value = found.map_or(Value::Null, entry);
                    if let (true, Some((experts, weights))) =
                        (field == "moe_router" && found.is_some(), traced.routing.get(last, i))
                    {
                        value["experts"] = json!(experts);
                        value["weights"] = json!(weights.iter().copied().map(Num).collect::<Vec<_>>());
                    }
                    layer.insert(field.into(), value);
                }
                let more = extra.iter().filter(|s| s.scope() == StageScope::Layer);
                let more: Map<String, Value> = more
                    .filter(|s| traced.stats.get(**s, Some(i)).is_some())
                    .map(|s| (s.name().to_owned(), stage(*s, Some(i))))
                    .collect();
                if !extra.is_empty() {
                    layer.insert("stages".into(), more.into());
                }
                layer.into()
            })
            .collect();
        let piece = |id: usize| engine.tokenizer.as_ref().and_then(|t| t.piece_lossy(TokenId(id as u32)));
        let top: Vec<Value> = top_tokens(&traced.logits)
            .into_iter()
            .map(|(id, logit)| json!({ "token_id": id, "token": piece(id), "logit": Num(logit) }))
            .collect();
        let mut all = Accumulator::default();
        all.add(&traced.logits);
        let logits = all.stats();
        let first = traced
            .first_non_finite
            .clone()
            .or_else(|| traced.stats.first_non_finite().map(|e| e.stage.path(e.layer)));
        let first_position = traced.stats.first_non_finite().and_then(|e| e.first_non_finite);
        let json = json!({
            "schema_version": SCHEMA_VERSION,
            "format": "gguf",
            "model": engine.model.metadata().origin(),
            "architecture": config.architecture,
            "backend": info.backend,
            "device": info.device,
            "activations": info.activations,
            "kv_type": info.kv_type,
            "num_layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "vocab_size": config.vocab_size,
            "num_heads": attention.num_attention_heads,
            "num_kv_heads": attention.num_key_value_heads,
            "prompt": engine.tokenizer.as_ref().and_then(|t| t.decode(tokens).ok()),
            "encoded_tokens": tokens,
            "embedding": stage(Stage::Embedding, None),
            "layers": layers,
            "final_norm": stage(Stage::FinalNorm, None),
            "logits": {
                "vocab_size": traced.logits.len(),
                "l2_norm": Num(logits.l2_norm),
                "stats": logits,
                "top_k": top,
            },
            "expert_use": usage,
            "summary": {
                "first_non_finite": first.map(|stage| json!({
                    "stage": stage,
                    "position": first_position.map(|p| p.0),
                    "kind": first_position.map(|p| if p.1 { "nan" } else { "inf" }),
                })),
                "std_dev_jumps": jumps(traced),
            },
        });
        Report { json }
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let j = &self.json;
        let word = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        let mut t = format!(
            "model {}: {}, {} layers, hidden size {}, vocabulary {}\nbackend {} on {}, activations {}, KV cache {}\n{} tokens: {}\n\n",
            shown(word(&j["model"])),
            word(&j["architecture"]),
            j["num_layers"],
            j["hidden_size"],
            j["vocab_size"],
            word(&j["backend"]),
            word(&j["device"]),
            word(&j["activations"]),
            word(&j["kv_type"]),
            j["encoded_tokens"].as_array().map_or(0, Vec::len),
            j["encoded_tokens"],
        );
        let _ = writeln!(
            t,
            "{:22} {:>7} {:>12} {:>12} {:>12} {:>12} {:>12} {:>5} {:>5} {:>6}",
            "stage", "count", "mean", "std_dev", "min", "max", "l2_norm", "nan", "inf", "zero"
        );
        row(&mut t, "embedding", &j["embedding"]);
        for layer in j["layers"].as_array().into_iter().flatten() {
            let _ = writeln!(t, "layer {}", layer["layer_idx"]);
            for (field, _) in LAYER_FIELDS {
                row(&mut t, field, &layer[field]);
                if let Some(experts) = layer[field]["experts"].as_array() {
                    let weights = layer[field]["weights"].as_array().into_iter().flatten();
                    let pairs = experts.iter().zip(weights);
                    let number = |w: &Value| w.as_f64().map_or_else(|| word(w), |w| format!("{w:.3}"));
                    let list: Vec<String> = pairs.map(|(e, w)| format!("{e} ({})", number(w))).collect();
                    let _ = writeln!(t, "    experts: {}", list.join(", "));
                }
            }
            for (name, entry) in layer["stages"].as_object().into_iter().flatten() {
                row(&mut t, name, entry);
            }
        }
        row(&mut t, "final_norm", &j["final_norm"]);
        row(&mut t, "logits", &j["logits"]["stats"]);
        t.push_str("\ntop tokens:\n");
        for top in j["logits"]["top_k"].as_array().into_iter().flatten() {
            let _ = writeln!(t, "  {:>8}  {:>10}  {}", top["token_id"], word(&top["logit"]), top["token"]);
        }
        for layer in j["expert_use"].as_array().into_iter().flatten() {
            let list = layer["most_used"].as_array().into_iter().flatten();
            let list: Vec<String> = list.map(|m| format!("{} ({}x)", m[0], m[1])).collect();
            let never = layer["never_used"].as_array().map_or(0, Vec::len);
            let entropy = layer["entropy_bits"].as_f64().unwrap_or(f64::NAN);
            let _ = writeln!(
                t,
                "layer {} experts: most used {}; never used {never} of {}; entropy {entropy:.2} bits",
                layer["layer"],
                list.join(", "),
                layer["counts"].as_array().map_or(0, Vec::len),
            );
        }
        let first = &j["summary"]["first_non_finite"];
        match first.is_null() {
            true => t.push_str("summary: every value is finite\n"),
            false => {
                let kind = if first["kind"] == "nan" { "NaN" } else { "Inf" };
                let _ = writeln!(
                    t,
                    "summary: the first {kind} is in {} at position {}",
                    word(&first["stage"]),
                    first["position"]
                );
            }
        }
        for jump in j["summary"]["std_dev_jumps"].as_array().into_iter().flatten() {
            let _ = writeln!(
                t,
                "summary: the standard deviation of layer {}'s output is {} times the layer's before",
                jump["layer_idx"], jump["ratio"]
            );
        }
        t
    }
}

fn entry(e: &StageStats) -> Value {
    let entry = StageEntry { stage: e.stage, production: e.production, stats: e.selected.stats() };
    // A struct of numbers and strings always becomes a value.
    serde_json::to_value(entry).unwrap_or(Value::Null)
}

fn row(text: &mut String, name: &str, entry: &Value) {
    if entry.is_null() {
        return;
    }
    let number = |key: &str| match entry[key].as_f64() {
        Some(x) => format!("{x:.5e}"),
        None => entry[key].as_str().unwrap_or("-").to_owned(),
    };
    let mark = if entry["production"] == false { " (recomputed)" } else { "" };
    let _ = writeln!(
        text,
        "  {name:20} {:>7} {:>12} {:>12} {:>12} {:>12} {:>12} {:>5} {:>5} {:>6}{mark}",
        entry["count"].to_string(),
        number("mean"),
        number("std_dev"),
        number("min"),
        number("max"),
        number("l2_norm"),
        entry["nan_count"].to_string(),
        entry["inf_count"].to_string(),
        entry["zero_count"].to_string(),
    );
}

/// The largest logits; NaN ranks last, the lower id first among equals.
fn top_tokens(logits: &[f32]) -> Vec<(usize, f32)> {
    let mut order: Vec<(usize, f32)> = logits.iter().copied().enumerate().collect();
    let rank = |x: f32| if x.is_nan() { f32::NEG_INFINITY } else { x };
    order.sort_by(|a, b| {
        a.1.is_nan().cmp(&b.1.is_nan()).then(rank(b.1).total_cmp(&rank(a.1))).then(a.0.cmp(&b.0))
    });
    order.truncate(TOP_TOKENS);
    order
}

/// Layers whose output's standard deviation is many times that of the layer before.
fn jumps(traced: &Traced) -> Vec<Value> {
    let outputs = traced.stats.entries().iter().filter(|e| e.stage == Stage::PostFfnResidual);
    let deviations: Vec<(usize, f64)> =
        outputs.filter_map(|e| e.layer.map(|l| (l, e.selected.stats().std_dev))).collect();
    let pairs = deviations.windows(2).filter(|w| w[1].1 > STD_DEV_JUMP * w[0].1);
    pairs
        .map(|w| json!({ "layer_idx": w[1].0, "ratio": Num((w[1].1 / w[0].1 * 10.0).round() / 10.0) }))
        .collect()
}
