//! Where fixture files are.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// The folder of this crate.
#[must_use]
pub fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The tiny chat model (Q4_K_M), which is also the built-in demo.
#[must_use]
pub fn tiny_q4_k_m() -> PathBuf {
    crate_dir().join("models/tiny-qwen3moe-q4_k_m.gguf")
}

/// The vocabulary and metadata of a Qwen2 model, without weights: carried deflated, inflated once below `target/`.
#[must_use]
pub fn qwen2_vocabulary() -> PathBuf {
    static INFLATED: LazyLock<PathBuf> = LazyLock::new(|| {
        const CARRIED: &[u8] = include_bytes!("../fixtures/tokenizer/ggml-vocab-qwen2.gguf.z");
        let folder = crate_dir().join("../target/fixtures");
        let file = folder.join("ggml-vocab-qwen2.gguf");
        let bytes = miniz_oxide::inflate::decompress_to_vec_zlib(CARRIED).expect("the carried file inflates");
        if std::fs::read(&file).is_ok_and(|there| there == bytes) {
            return file;
        }
        // Written beside and renamed: other test binaries read it at the same time.
        std::fs::create_dir_all(&folder).expect("a folder below target/");
        let mut written = tempfile::NamedTempFile::new_in(&folder).expect("a file below target/");
        written.write_all(&bytes).expect("room for six megabytes");
        written.persist(&file).expect("a file below target/");
        file
    });
    INFLATED.clone()
}

/// A fixture by its path below the fixtures folder (`micro/zoo-q4_0.gguf`): carried, or in `MOE_FIXTURES`. `None`, with
/// a loud line on stderr, where it is in neither.
#[must_use]
pub fn find(path: &str) -> Option<PathBuf> {
    if path == "tiny/tiny-qwen3moe-q4_k_m.gguf" {
        return Some(tiny_q4_k_m());
    }
    let carried = crate_dir().join("fixtures").join(path);
    if carried.exists() {
        return Some(carried);
    }
    if let Some(dir) = std::env::var_os("MOE_FIXTURES") {
        let found = Path::new(&dir).join(path);
        if found.exists() {
            return Some(found);
        }
    }
    eprintln!("SKIPPED: fixture {path} is not carried, and MOE_FIXTURES does not lead to it");
    None
}

/// The micro models that have stage files, by stem, with those present.
#[must_use]
pub fn micro_models() -> Vec<(&'static str, PathBuf, PathBuf)> {
    const STEMS: &[&str] = &[
        "dense-qwen3-q4_k",
        "mixed-q4_k_m",
        "no-rope-base-q8_0",
        "tied-q8_0",
        "wide-q4_k",
        "zoo-bf16",
        "zoo-f16",
        "zoo-f32",
        "zoo-iq4_nl",
        "zoo-iq4_xs",
        "zoo-q2_k",
        "zoo-q3_k",
        "zoo-q4_0",
        "zoo-q4_1",
        "zoo-q4_k",
        "zoo-q5_0",
        "zoo-q5_1",
        "zoo-q5_k",
        "zoo-q6_k",
        "zoo-q8_0",
    ];
    let pair = |stem: &&'static str| {
        let model = find(&format!("micro/{stem}.gguf"))?;
        let stages = find(&format!("micro/{stem}.stages.safetensors"))?;
        Some((*stem, model, stages))
    };
    STEMS.iter().filter_map(pair).collect()
}

/// The tiny models that have stage files, with those present.
#[must_use]
pub fn tiny_models() -> Vec<(&'static str, PathBuf, PathBuf)> {
    let pair = |stem: &&'static str| {
        let model = find(&format!("tiny/tiny-qwen3moe-{stem}.gguf"))?;
        let stages = find(&format!("tiny/tiny-qwen3moe-{stem}.stages.safetensors"))?;
        Some((*stem, model, stages))
    };
    ["q4_k_m", "q8_0"].iter().filter_map(pair).collect()
}

/// Files of one architecture each with stages from float64, by stem below `arch/`: one small case of each is carried.
const ARCHITECTURES: &[&str] = &[
    "afmoe/trinity",
    "afmoe/trinity-q4_0",
    "bailingmoe2/main",
    "bailingmoe2/main-q8_0",
    "bailingmoe3/small-f16",
    "bailingmoe3/small-q4_k_m",
    "cohere2moe/north-mini",
    "cohere2moe/north-mini-q4_0",
    "dbrx/main",
    "dbrx/main-q8_0",
    "deepseek2/glm-4.7-flash",
    "deepseek2/v2-lite",
    "deepseek2/v2-lite-kvb",
    "deepseek2/v3",
    "deepseek2/v3-q4_0",
    "deepseek32/small-f16",
    "deepseek32/small-q4_0",
    "deepseek32/tiny",
    "deepseek4/small-mxfp4",
    "deepseek4/tiny",
    "dots1/main",
    "dots1/main-mxfp4_moe",
    "ernie4_5-moe/main",
    "ernie4_5-moe/main-q4_0",
    "ernie4_5-moe/no-shared",
    "exaone-moe/k-exaone",
    "exaone-moe/k-exaone-q4_0",
    "gemma4/a4b",
    "gemma4/a4b-q4_0",
    "gemma4/e2b-dense",
    "glm-dsa/small-f16",
    "glm-dsa/small-q4_k_m",
    "glm-dsa/tiny",
    "glm4moe/air",
    "glm4moe/air-q8_0",
    "glm4moe/big",
    "gpt-oss/mxfp4",
    "gpt-oss/mxfp4-mxfp4_moe",
    "gpt-oss/yarn-real",
    "granitehybrid/small-f16",
    "granitehybrid/small-q4_k_m",
    "granitemoe/main",
    "granitemoe/main-q8_0",
    "granitemoe/shared",
    "grovemoe/main",
    "grovemoe/main-q4_0",
    "grovemoe/tiny",
    "hunyuan-moe/alpha",
    "hunyuan-moe/main",
    "hunyuan-moe/main-q4_k_m",
    "hy_v3/hy3",
    "hy_v3/hy3-q4_0",
    "jamba/small-f16",
    "jamba/small-q4_k_m",
    "jamba/tiny",
    "kimi-linear/small-f16",
    "kimi-linear/small-q4_k_m",
    "laguna/xs",
    "laguna/xs-q4_0",
    "lfm2moe/small-f16",
    "lfm2moe/small-q8_0",
    "llama-moe/llama3",
    "llama-moe/mixtral",
    "llama-moe/mixtral-q4_0",
    "llama4/maverick",
    "llama4/scout",
    "llama4/scout-q4_0",
    "mimo2/flash",
    "mimo2/flash-q4_k_m",
    "minimax-m2/main",
    "minimax-m2/main-mxfp4_moe",
    "mistral4/small-4",
    "mistral4/small-4-q4_0",
    "nemotron_h_moe/latent-f16",
    "nemotron_h_moe/latent-q4_k_m",
    "nemotron_h_moe/small-f16",
    "olmoe/main",
    "olmoe/main-q4_0",
    "phimoe/main",
    "phimoe/main-q8_0",
    "qwen2moe/fused-qkv",
    "qwen2moe/main",
    "qwen2moe/main-q8_0",
    "qwen35moe/small-f16",
    "qwen35moe/small-q4_k_m",
    "qwen3moe/linear",
    "qwen3moe/yarn",
    "qwen3moe/yarn-q8_0",
    "qwen3next/small-f16",
    "qwen3next/small-fused-q8_0",
    "qwen3vlmoe/main",
    "qwen3vlmoe/main-mxfp4_moe",
    "smallthinker/main",
    "smallthinker/main-q4_0",
    "step35/flash",
    "step35/flash-q4_0",
];

/// The models of further architectures that have stage files, by stem, with those present.
#[must_use]
pub fn architecture_models() -> Vec<(&'static str, PathBuf, PathBuf)> {
    let pair = |stem: &&'static str| {
        let model = find(&format!("arch/{stem}.gguf"))?;
        let stages = find(&format!("arch/{stem}.stages.safetensors"))?;
        Some((*stem, model, stages))
    };
    ARCHITECTURES.iter().filter_map(pair).collect()
}

/// Whether the longest matrices are asked for (`scripts/test.sh --full`).
#[must_use]
pub fn full() -> bool {
    std::env::var("MOE_FULL").is_ok_and(|v| v == "1")
}
