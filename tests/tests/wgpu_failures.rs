//! What can fail around an adapter, each with what the user is told and the exit code: no adapter, features that are
//! missing, no memory for weights or cache, a shader that does not compile, a device that is lost on the way.

use moe_run::ExitCode;
use moe_run::error::CliError;
use moe_run::generate::{GenerateArgs, generate};
use moe_run_backends::generate::StopReason;
use moe_run_backends::sampler::{Sampler, SamplerOptions};
use moe_run_backends::session::Session;
use moe_run_backends::wgpu::{Faults, Features, Wgpu, WgpuOptions};
use moe_run_backends::{Backend, BackendError, CompileOptions, Executable};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_tests::cli::finish;
use moe_run_tests::fixtures;
use moe_run_text::tokenizer::Tokenizer;
use std::process::Command;

const PROMPT: [u32; 15] = [3070, 303, 198, 354, 294, 220, 17, 10, 17, 30, 3071, 198, 3070, 304, 198];

fn has_adapter() -> bool {
    let found = Wgpu::default().devices().is_ok();
    if !found {
        eprintln!("SKIPPED: no wgpu adapter; install mesa-vulkan-drivers");
    }
    found
}

fn with(faults: Faults) -> Wgpu {
    Wgpu { options: WgpuOptions { faults, ..WgpuOptions::default() } }
}

fn tiny() -> Model {
    Model::open(&fixtures::tiny_q4_k_m()).unwrap()
}

fn compile(backend: &Wgpu, model: &Model, ctx_size: usize) -> Result<Box<dyn Executable>, BackendError> {
    let options = CompileOptions { ctx_size, ..CompileOptions::default() };
    backend.compile(&model.graph, model.file.clone(), &options)
}

/// The process sees no driver at all.
#[test]
fn without_an_adapter_the_backend_is_refused_and_says_what_to_do() {
    let program = env!("CARGO_BIN_EXE_moe-run-under-test");
    let run = |args: &[&str]| {
        let mut command = Command::new(program);
        // The first name is the Vulkan loader's, the second that of loaders before 1.3.207.
        command.env("VK_DRIVER_FILES", "/nonexistent").env("VK_ICD_FILENAMES", "/nonexistent");
        finish(command.args(args).output().unwrap())
    };
    if cfg!(not(target_os = "linux")) {
        eprintln!("SKIPPED: only Vulkan's loader can be told to find no driver");
        return;
    }
    let refused = run(&["run", "--backend", "wgpu", "-p", "x"]);
    assert_eq!(refused.code, ExitCode::Unsupported as i32, "{refused:#?}");
    for text in ["no Vulkan, Metal or DX12 adapter", "mesa-vulkan-drivers", "--backend cpu"] {
        assert!(refused.stderr.contains(text), "{text} in {refused:#?}");
    }
    assert!(refused.stdout.is_empty());
    let devices = run(&["devices"]).succeeded();
    assert!(devices.stdout.contains("cpu"), "{devices:#?}");
}

#[test]
fn what_the_plain_path_stands_in_for_is_named() {
    if !has_adapter() {
        return;
    }
    let allowed = Features { f16: false, ..WgpuOptions::default().allowed };
    let backend = Wgpu { options: WgpuOptions { allowed, ..WgpuOptions::default() } };
    let missing = "shader-f16 (the f16 cache is read by integer arithmetic)";
    let device = compile(&backend, &tiny(), 64).unwrap().info().device.clone();
    assert!(device.contains(missing), "{device}");
    let devices = backend.devices().unwrap();
    let details = devices[0].details.iter().find(|(name, _)| name == "features missing").unwrap();
    assert!(details.1.contains(missing), "{details:?}");
}

#[test]
fn memory_for_the_weights_says_how_many_layers_fit() {
    if !has_adapter() {
        return;
    }
    let model = tiny();
    let backend = with(Faults { memory_bytes: Some(5 << 20), ..Faults::default() });
    let error = compile(&backend, &model, 64).err().unwrap();
    let BackendError::OutOfMemory { wanted_bytes, available_bytes, .. } = error else { panic!("{error}") };
    assert!(wanted_bytes > 9_000_000 && available_bytes < 5 << 20, "{error}");
    let text = error.to_string();
    let fits = (1..4).find(|n| text.contains(&format!("{n} of 4 layers fit")));
    assert!(fits.is_some() && text.contains("smaller quantization"), "{text}");
    assert_eq!(CliError::from(error).exit_code(), ExitCode::Failed);
}

/// What is advised fits.
#[test]
fn memory_for_the_cache_says_which_context_fits() {
    if !has_adapter() {
        return;
    }
    let model = tiny();
    let backend = with(Faults { memory_bytes: Some(100 << 20), ..Faults::default() });
    let executable = compile(&backend, &model, 100_000).unwrap();
    let error = executable.new_state().err().unwrap();
    let text = error.to_string();
    assert!(text.contains("KV cache") && text.contains("for 100000 positions"), "{text}");
    let fits = text.split("--ctx-size ").nth(1).and_then(|t| t.split(',').next()).unwrap();
    let fits: usize = fits.parse().unwrap_or_else(|_| panic!("{text}"));
    assert!((20_000..60_000).contains(&fits), "{text}");
    drop(executable);
    compile(&backend, &model, fits).unwrap().new_state().unwrap();
    assert_eq!(CliError::from(error).exit_code(), ExitCode::Failed);
}

#[test]
fn a_shader_that_does_not_compile_is_named_with_the_compilers_words() {
    if !has_adapter() {
        return;
    }
    let backend = with(Faults { broken_shader: Some("route_gate_up"), ..Faults::default() });
    let error = compile(&backend, &tiny(), 64).err().unwrap();
    let text = error.to_string();
    // The variant with formats, sizes and features; what is wrong; what to try.
    for wanted in ["shader route_gate_up_q4_k_q4_k_q8 ", "LANES=", "broken_by_a_test", "--backend cpu"] {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    assert_eq!(CliError::from(error).exit_code(), ExitCode::Failed);
}

/// However the tokens come: what was generated until then has been written, and is in the outcome.
#[test]
fn a_device_that_is_lost_on_the_way_keeps_the_text() {
    if !has_adapter() {
        return;
    }
    let model = tiny();
    let tokenizer = Tokenizer::from_metadata(model.metadata()).unwrap();
    let prompt = PROMPT.map(TokenId);
    let candidates = SamplerOptions { temperature: 0.01, top_k: 3, ..SamplerOptions::GREEDY };
    let all_logits = SamplerOptions { top_k: 0, ..candidates };
    for options in [SamplerOptions::GREEDY, candidates, all_logits] {
        // The prompt is the first submission; each token is one more, and reading all logits another.
        let lost_at_submission = Some(if options == all_logits { 8 } else { 4 });
        let backend = with(Faults { lost_at_submission, ..Faults::default() });
        let mut session = Session::new(compile(&backend, &model, 64).unwrap()).unwrap();
        let mut sampler = Sampler::new(options).unwrap();
        let mut written = String::new();
        let args = GenerateArgs { max_tokens: Some(20), ..GenerateArgs::default() };
        let outcome = generate(&mut session, Some(&tokenizer), &mut sampler, &prompt, &args, None, |text| {
            written.push_str(text);
            Ok(())
        })
        .unwrap();
        assert_eq!(outcome.stop_reason, StopReason::Failed);
        assert!(!written.is_empty() && "2 + 2 = 4".starts_with(&written) && written.len() < 9, "{written:?}");
        assert_eq!(outcome.text, written);
        let failure = outcome.failure.unwrap();
        assert_eq!(failure.exit_code(), ExitCode::Failed);
        assert!(failure.to_string().contains("the device was lost"), "{failure}");
        assert!(session.tokens().starts_with(&prompt));
        // Nothing goes on with it, and nothing hangs or panics.
        assert!(session.decode(TokenId(5), None).is_err());
    }
}
