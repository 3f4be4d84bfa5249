//! Before a model is loaded, two lines: whether it fits, and what runs where; and what `auto` has opened.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use moe_run_backends::{MemoryNeed, OnOpened, Opened, auto::Chosen};
use moe_run_graph::{
    Model,
    ir::LeftOut,
    shown::{shown, shown_list},
};

use crate::{engine::human_bytes, output};

/// Lines that have been said: a command that loads its model several times says the same only once.
static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The choice of "auto" for people, a line each; `what` it is for.
pub fn choice_text(chosen: &Chosen, what: &str) -> String {
    let mut text =
        format!("auto: {} is the fastest backend that can run this model here{what}", chosen.backend);
    for reason in &chosen.not_taken {
        text.push_str(&format!("\n  not taken: {reason}"));
    }
    text
}

/// Says what of a model's file is not run: tensors that are left out on purpose, and keys that nothing here knows.
pub fn not_run(model: &Model) {
    left_out_lines(&model.graph.left_out).iter().for_each(|line| once(line));
    let unused = &model.config.unused_keys;
    if !unused.is_empty() {
        once_warned(&format!("metadata that is not known here has no effect: {}", shown_list(unused)));
    }
}

/// "left out: blk.46.* (30 tensors, 1.2 GiB): multi-token prediction layer, used only for drafting".
pub fn left_out_lines(left_out: &[LeftOut]) -> Vec<String> {
    let line = |l: &LeftOut| {
        let (tensors, bytes) = (l.tensors, human_bytes(l.bytes));
        format!("left out: {}* ({tensors} tensors, {bytes}): {}", shown(&l.prefix), l.reason)
    };
    left_out.iter().map(line).collect()
}

/// What says it; `chosen` is there where "auto" chose.
pub fn on_opened(chosen: Option<Chosen>) -> OnOpened {
    Arc::new(move |opened: &Opened<'_>| {
        // A comparison opens another backend, too, which was named.
        if let Some(chosen) = chosen.as_ref().filter(|c| c.backend == opened.info.backend) {
            once(&choice_text(chosen, ""));
        }
        let memory = memory(opened);
        match opened.memory.fits() {
            Some(false) => once_warned(&memory),
            _ => once(&memory),
        }
        once(&runs(opened));
        if let Some(note) = threads(opened) {
            once(&note);
        }
    })
}

fn is_new(line: &str) -> bool {
    SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(line.to_owned())
}

/// Says a line, once.
pub fn once(line: &str) {
    if is_new(line) {
        output::note(line);
    }
}

fn once_warned(line: &str) {
    if is_new(line) {
        output::warning(line);
    }
}

/// "memory: weights 17.2 GiB + KV cache 384.0 MiB (4096 tokens, f16) + working memory … of 20.1 GiB available: fits".
fn memory(opened: &Opened<'_>) -> String {
    let MemoryNeed { weight_bytes, kv_cache_bytes, kv_stored, working_bytes, available_bytes } =
        opened.memory;
    let of_part = opened.part.map(|part| format!(" of {part}")).unwrap_or_default();
    let wanted = format!(
        "memory{of_part}: weights {} + KV cache {} ({} tokens, {kv_stored}) + working memory {}",
        human_bytes(weight_bytes),
        human_bytes(kv_cache_bytes),
        opened.ctx_size,
        human_bytes(working_bytes),
    );
    match (available_bytes, opened.memory.fits()) {
        (Some(available), Some(true)) => format!("{wanted} of {} available: fits", human_bytes(available)),
        (Some(available), _) => {
            let weights_alone = weight_bytes > available;
            let advice = match (weights_alone, kv_cache_bytes > weight_bytes / 8) {
                (true, _) => "a smaller quantization of the model would fit",
                (false, true) => "try a smaller --ctx-size, or --kv-type q8_0",
                (false, false) => "close other programs, or take a smaller quantization of the model",
            };
            // Where the weights stay in the mapped file, what does not fit is read again.
            let so = match opened.info.weight_bytes {
                0 => ", so weights are read from the file again and again",
                _ => "",
            };
            format!("{wanted} of {} available: does not fit{so}; {advice}", human_bytes(available))
        }
        (None, _) => format!("{wanted}; the driver does not tell how much the device has"),
    }
}

/// "runs: all 48 layers on cpu (AMD EPYC, 2 threads, AVX2), activations q8".
fn runs(opened: &Opened<'_>) -> String {
    let info = opened.info;
    let mut device = vec![info.device.clone()];
    if info.backend == "cpu" {
        device.push(format!("{} thread{}", info.threads, if info.threads == 1 { "" } else { "s" }));
    }
    if !opened.details.is_empty() {
        device.push(opened.details.clone());
    }
    if let Some(part) = opened.part {
        return format!("runs: {part} ({}), activations {}", device.join(", "), info.activations);
    }
    let layers = match opened.num_layers {
        1 => "the 1 layer".to_owned(),
        n => format!("all {n} layers"),
    };
    format!("runs: {layers} on {} ({}), activations {}", info.backend, device.join(", "), info.activations)
}

/// What became of a number of threads that was asked for, where it is not that.
fn threads(opened: &Opened<'_>) -> Option<String> {
    let asked = opened.asked_threads?;
    let (backend, used) = (opened.info.backend, opened.info.threads);
    // Of several devices another may look at it.
    if backend != "cpu" && opened.part.is_some() {
        return None;
    }
    if backend != "cpu" {
        return Some(format!(
            "note: --threads {asked} is not looked at: it is for --backend cpu, and this is {backend}"
        ));
    }
    (asked > used).then(|| {
        format!(
            "note: {asked} threads asked for, the machine has {used}: {used} {} used",
            if used == 1 { "is" } else { "are" }
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_run_backends::{Activations, ExecutableInfo, KvType};

    fn info(backend: &'static str, threads: usize) -> ExecutableInfo {
        ExecutableInfo {
            backend,
            device: "A device".to_owned(),
            activations: Activations::Q8,
            q8_super_block: None,
            kv_type: KvType::F16,
            threads,
            micro_batch: 512,
            weight_bytes: 0,
        }
    }

    fn opened<'a>(info: &'a ExecutableInfo, asked: Option<usize>, available: Option<u64>) -> Opened<'a> {
        Opened {
            info,
            details: "AVX2".to_owned(),
            num_layers: 48,
            part: None,
            ctx_size: 4096,
            asked_threads: asked,
            memory: MemoryNeed {
                weight_bytes: 16 << 30,
                kv_cache_bytes: 1 << 29,
                kv_stored: KvType::F16,
                working_bytes: 1 << 20,
                available_bytes: available,
            },
        }
    }

    #[test]
    fn whether_it_fits() {
        let info = info("cpu", 2);
        let line = |available| memory(&opened(&info, None, available));
        let sum = "memory: weights 16.0 GiB + KV cache 512.0 MiB (4096 tokens, f16) + working memory 1.0 MiB";
        assert_eq!(line(Some(24 << 30)), format!("{sum} of 24.0 GiB available: fits"));
        assert!(line(Some(16 << 30)).contains("of 16.0 GiB available: does not fit"));
        assert!(line(Some(8 << 30)).contains("a smaller quantization of the model would fit"));
        assert!(line(None).contains("does not tell"));
    }

    #[test]
    fn what_runs_where() {
        let (one, two) = (info("cpu", 1), info("cuda", 1));
        let all = "runs: all 48 layers on cpu (A device, 1 thread, AVX2), activations q8";
        assert_eq!(runs(&opened(&one, None, None)), all);
        assert_eq!(
            runs(&opened(&two, None, None)),
            "runs: all 48 layers on cuda (A device, AVX2), activations q8"
        );
    }

    #[test]
    fn threads_that_are_not_used_are_noted() {
        let (cpu, cuda) = (info("cpu", 2), info("cuda", 1));
        let note = |info, asked| threads(&opened(info, asked, None));
        assert_eq!(note(&cpu, None), None);
        assert_eq!(note(&cpu, Some(2)), None);
        let said = note(&cpu, Some(500)).unwrap();
        assert_eq!(said, "note: 500 threads asked for, the machine has 2: 2 are used");
        assert!(note(&cuda, Some(1)).unwrap().contains("is not looked at"));
    }
}
