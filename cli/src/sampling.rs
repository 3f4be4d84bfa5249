//! Options of sampling: given on the command line, else stated by the file, else the defaults; said where each comes from.

use std::hash::{BuildHasher, Hasher, RandomState};

use moe_run_backends::{
    Executable,
    choice::MAX_CANDIDATES,
    sampler::{Sampler, SamplerOptions},
};
use moe_run_graph::gguf::{GgufError, Metadata, keys};

use crate::{CliError, common};

/// What Qwen3's makers advise for instruct models: the defaults where a file states nothing.
const DEFAULT_TEMPERATURE: f32 = 0.7;
const DEFAULT_TOP_K: usize = 20;
const DEFAULT_TOP_P: f32 = 0.8;

/// How tokens are chosen.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(
    next_help_heading = "Sampling (defaults: the file's own, else temperature 0.7, top-k 20, top-p 0.8)"
)]
pub struct SamplerArgs {
    /// Temperature; 0 always takes the best token
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temp: Option<f32>,

    /// Choose among the K best tokens only; 0 for all
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = common::whole_number::<usize>)]
    pub top_k: Option<usize>,

    /// Choose among the fewest tokens that have this share of the probability together; 1 for all
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,

    /// Choose among tokens at least this many times as probable as the best; 0 for all
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,

    /// Makes tokens that occurred less likely; 1 changes nothing
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,

    /// Seed of the random choice: the same seed gives the same text [default: a random one, said on standard error]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = common::whole_number::<u64>)]
    pub seed: Option<u64>,
}

/// Where a setting comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Origin {
    Given,
    File,
    Default,
}

impl Origin {
    /// What is said behind a value.
    fn note(self) -> &'static str {
        match self {
            Origin::Given => "",
            Origin::File => " (the file's)",
            Origin::Default => " (default)",
        }
    }
}

fn choose<T>(given: Option<T>, file: Option<T>, default: T) -> (T, Origin) {
    match (given, file) {
        (Some(value), _) => (value, Origin::Given),
        (None, Some(value)) => (value, Origin::File),
        (None, None) => (default, Origin::Default),
    }
}

impl SamplerArgs {
    /// Checks what is given, before a model is there.
    ///
    /// Errors: a value outside of its range.
    pub fn check(&self) -> Result<(), CliError> {
        let g = SamplerOptions::GREEDY;
        SamplerOptions {
            temperature: self.temp.unwrap_or(g.temperature),
            top_p: self.top_p.unwrap_or(g.top_p),
            min_p: self.min_p.unwrap_or(g.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(g.repetition_penalty),
            ..g
        }
        .check()?;
        Ok(())
    }

    /// The sampler for a file, and the line that says what it does and where each setting comes from.
    ///
    /// Errors: a value of the file is of the wrong type or outside of its range.
    pub fn sampler(&self, metadata: &Metadata) -> Result<(Sampler, String), CliError> {
        let file_f32 = |key: &str| -> Result<Option<f32>, GgufError> { metadata.opt_f32(key) };
        let file_top_k = metadata.opt_i32(keys::SAMPLING_TOP_K)?.map(|k| usize::try_from(k).unwrap_or(0));
        let temperature = choose(self.temp, file_f32(keys::SAMPLING_TEMP)?, DEFAULT_TEMPERATURE);
        let top_k = choose(self.top_k, file_top_k, DEFAULT_TOP_K);
        let top_p = choose(self.top_p, file_f32(keys::SAMPLING_TOP_P)?, DEFAULT_TOP_P);
        let min_p = choose(self.min_p, file_f32(keys::SAMPLING_MIN_P)?, 0.0);
        let penalty = choose(self.repetition_penalty, file_f32(keys::SAMPLING_PENALTY_REPEAT)?, 1.0);
        // A random number of 32 bits: short enough to type, and exact in any JSON reader.
        let seed = self.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish() >> 32);
        let options = SamplerOptions {
            temperature: temperature.0,
            top_k: top_k.0,
            top_p: top_p.0,
            min_p: min_p.0,
            repetition_penalty: penalty.0,
            seed,
        };
        let sampler = Sampler::new(options)?;

        let mut line = if options.temperature == 0.0 {
            format!("sampling: the best token always: temperature 0{}", temperature.1.note())
        } else {
            format!(
                "sampling: temperature {}{}, top-k {}{}, top-p {}{}",
                temperature.0,
                temperature.1.note(),
                top_k.0,
                top_k.1.note(),
                top_p.0,
                top_p.1.note()
            )
        };
        if options.temperature != 0.0 && options.min_p != 0.0 {
            line.push_str(&format!(", min-p {}{}", min_p.0, min_p.1.note()));
        }
        if options.repetition_penalty != 1.0 {
            line.push_str(&format!(", repetition penalty {}{}", penalty.0, penalty.1.note()));
        }
        if options.temperature != 0.0 {
            line.push_str(&format!(", seed {seed}"));
        }
        Ok((sampler, line))
    }
}

/// What comes back from a device for each token, for people; `None` where logits lie on the host anyway.
pub fn read_back_line(sampler: &Sampler, executable: &dyn Executable) -> Option<String> {
    if !executable.queues_steps() {
        return None;
    }
    Some(if sampler.is_plain_argmax() {
        "read back for each token: the token, which the device chooses, while its step runs already"
            .to_owned()
    } else if let Some(count) = sampler.candidates_wanted() {
        let rest = if sampler.options().repetition_penalty == 1.0 {
            ""
        } else {
            "; all logits where the repetition penalty makes room for more"
        };
        format!("read back for each token: {count} candidates, which the device chooses{rest}")
    } else {
        format!(
            "read back for each token: all logits; with top-k 1 to {MAX_CANDIDATES} ({} with a repetition penalty, which must \
             be above 1) it would be candidates alone",
            MAX_CANDIDATES / 2
        )
    })
}

#[cfg(test)]
mod tests {
    use moe_run_graph::gguf::MetaValue;

    use super::*;

    #[test]
    fn given_before_file_before_default() {
        let metadata = Metadata::from_pairs(
            "f",
            [(keys::SAMPLING_TEMP, MetaValue::F32(0.25)), (keys::SAMPLING_TOP_K, MetaValue::I32(-1))],
        )
        .unwrap();
        let args = SamplerArgs { temp: Some(0.5), seed: Some(3), ..SamplerArgs::default() };
        let (sampler, line) = args.sampler(&metadata).unwrap();
        assert_eq!(
            *sampler.options(),
            SamplerOptions {
                temperature: 0.5,
                top_k: 0,
                top_p: 0.8,
                min_p: 0.0,
                repetition_penalty: 1.0,
                seed: 3
            }
        );
        assert_eq!(line, "sampling: temperature 0.5, top-k 0 (the file's), top-p 0.8 (default), seed 3");
        let (_, line) = SamplerArgs::default().sampler(&metadata).unwrap();
        assert!(line.starts_with("sampling: temperature 0.25 (the file's), "), "{line}");
    }

    #[test]
    fn values_outside_of_their_range_are_bad_input() {
        let args = SamplerArgs { top_p: Some(2.0), ..SamplerArgs::default() };
        assert!(matches!(args.check(), Err(CliError::BadInput(_))));
        let metadata = Metadata::from_pairs("f", [(keys::SAMPLING_TEMP, MetaValue::F32(-1.0))]).unwrap();
        assert!(matches!(SamplerArgs::default().sampler(&metadata), Err(CliError::BadInput(_))));
    }
}
