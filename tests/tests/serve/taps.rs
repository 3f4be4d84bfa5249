//! `"taps"` of a request: what the passes held, which changes nothing of the answer and does not depend on who else is served.

use crate::{CHAT, COMPLETIONS, PROGRAM, question, whole, with};
use moe_run_tests::http::Serving;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A tensor's shape, elements, and positions of its rows.
type Tensor = (Vec<usize>, Vec<f32>, [usize; 2]);

fn tensors(told: &Value) -> BTreeMap<String, Tensor> {
    let bytes = base64::decode(told.as_str().expect("taps")).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let positions = &metadata.metadata().as_ref().unwrap()["positions"];
    let positions: BTreeMap<String, [usize; 2]> = serde_json::from_str(positions).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |name: &str| {
        let view = file.tensor(name).unwrap();
        let elems = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        (view.shape().to_vec(), elems.collect(), positions[name])
    };
    file.names().into_iter().map(|name| (name.to_owned(), tensor(name))).collect()
}

#[test]
fn what_the_passes_held_is_told_and_changes_nothing() {
    let server = Serving::start(PROGRAM, &["--taps", "--ctx-size", "512"]);
    let body =
        json!({"messages": question("What is 2+2?"), "temperature": 0, "logprobs": true, "routing": true});
    let plain = server.post(CHAT, &body).ok();
    let asked = json!({"taps": ["layer-1/moe_topk_ids", "layer-1/moe_logits", "embedding", "final_norm", "post_ffn_residual"]});
    let answer = server.post(CHAT, &with(body.clone(), &asked)).ok();
    assert_eq!(whole(&answer), whole(&plain));
    assert!(plain["choices"][0].get("taps").is_none());
    let told = tensors(&answer["choices"][0]["taps"]);
    let usage = &answer["usage"];
    // Every row is told, so that none of them comes from the cache.
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    let count = |name: &str| usage[name].as_u64().unwrap() as usize;
    let (prompt, out) = (count("prompt_tokens"), count("completion_tokens"));
    // The token that ended the answer was chosen, too, and not read.
    let rows = prompt + out;
    let (shape, router, positions) = &told["layer-1/moe_logits"];
    assert_eq!((shape.as_slice(), *positions), (&[rows, 16][..], [0, rows]));
    let (shape, ids, _) = &told["layer-1/moe_topk_ids"];
    assert_eq!(shape, &[rows, 4]);
    for (logits, ids) in router.chunks_exact(16).zip(ids.chunks_exact(4)) {
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        assert_eq!(best as f32, ids[0]);
    }
    // The experts that `routing` tells of each token are those of the pass in front of it.
    for (at, token) in answer["choices"][0]["routing"].as_array().unwrap().iter().enumerate() {
        let told: Vec<f32> =
            token["layers"]["1"].as_array().unwrap().iter().map(|id| id.as_f64().unwrap() as f32).collect();
        assert_eq!(told, ids[(prompt - 1 + at) * 4..][..4]);
    }
    let (shape, _, positions) = &told["final_norm"];
    assert_eq!((shape[0], *positions), (out + 1, [prompt - 1, rows]));
    assert_eq!(told["embedding"].0[0], rows);
    // A stage without a layer is that of every layer.
    assert!(told.keys().filter(|name| name.ends_with("/post_ffn_residual")).count() > 1);

    let streamed = with(with(body.clone(), &asked), &json!({"stream": true}));
    let (events, _) = server.post(CHAT, &streamed).events();
    let parts: Vec<&Value> = events.iter().filter_map(|event| event["choices"][0].get("taps")).collect();
    assert_eq!(parts, [&answer["choices"][0]["taps"]]);

    // Beside others, who ask for other taps or none, and several at once.
    std::thread::scope(|scope| {
        for client in 0..6 {
            let (server, body, asked, answer) = (&server, &body, &asked, &answer);
            scope.spawn(move || match client % 3 {
                0 => {
                    let other = json!({"taps": ["layer-0/moe_router"], "messages": question("Why?"), "max_tokens": 20});
                    let other = server.post(CHAT, &with(body.clone(), &other)).ok();
                    assert_eq!(tensors(&other["choices"][0]["taps"]).len(), 1);
                }
                1 => drop(server.post(CHAT, &with(body.clone(), &json!({"max_tokens": 20}))).ok()),
                _ => {
                    let again = server.post(CHAT, &with(body.clone(), asked)).ok();
                    assert_eq!(again["choices"][0]["taps"], answer["choices"][0]["taps"]);
                }
            });
        }
    });
    let text = json!({"prompt": ["Hi", "Why not?"], "max_tokens": 3, "ignore_eos": true, "n": 2, "taps": ["layer-0/attn_norm"]});
    for choice in server.post(COMPLETIONS, &text).ok()["choices"].as_array().unwrap() {
        assert_eq!(tensors(&choice["taps"]).len(), 1);
    }
    server.wait_for_metric("moe_run_kv_blocks_used", 0.0);

    for (taps, param, word) in [
        (json!(["layer-1/router"]), "taps[0]", "no stage"),
        (json!(["embedding", "layer-99/moe_router"]), "taps[1]", "layer 99"),
        (json!(["layer-x/moe_router"]), "taps[0]", "layer-N/STAGE"),
        (json!(["layer-0/final_norm"]), "taps[0]", "of no layer"),
        (json!(["layer-0/attn_scores"]), "taps[0]", "--save-tensor"),
        (json!(["layer-0/q_a_norm"]), "taps[0]", "stage"),
        (json!([3]), "taps[0]", "a string"),
        (json!("embedding"), "taps", "an array"),
    ] {
        let refused = server.post(CHAT, &with(body.clone(), &json!({"taps": taps})));
        let error = &refused.json()["error"];
        assert_eq!((refused.status, &error["param"]), (400, &json!(param)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
    }
    let large = json!({"prompt": "Hi", "n": 64, "max_tokens": 500, "taps": ["lm_head", "post_ffn_residual"]});
    let refused = server.post(COMPLETIONS, &large);
    assert_eq!(
        (refused.status, &refused.json()["error"]["param"]),
        (400, &json!("taps")),
        "{}",
        refused.text()
    );
    for path in ["/v1/responses", "/v1/messages"] {
        let body = json!({"input": "Hi", "messages": question("Hi"), "max_tokens": 3, "taps": ["embedding"]});
        let refused = server.post(path, &body);
        assert_eq!(refused.status, 400, "{path}");
        assert!(refused.text().contains("taps"), "{}", refused.text());
    }
}
