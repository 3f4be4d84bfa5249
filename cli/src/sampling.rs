//! Options of sampling: given on the command line, else stated by the file, else the defaults; said where each comes from.

use std::{
    fmt::Display,
    hash::{BuildHasher, Hasher, RandomState},
};

use moe_run_backends::{
    Executable,
    choice::MAX_CANDIDATES,
    sampler::{Sampler, SamplerError, SamplerOptions},
};
use moe_run_graph::gguf::{MetaValue, Metadata, keys};

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

/// A setting: the given one, else the file's, where that can be used, else the default.
struct Chooser<'a> {
    metadata: &'a Metadata,
    /// What is said of values that cannot be used.
    notes: Vec<String>,
}

impl Chooser<'_> {
    /// `read` gives the file's value from a metadata value, or what is wanted instead.
    fn choose<T: Copy + Display>(
        &mut self,
        given: Option<T>,
        (key, option): (&str, &str),
        default: T,
        read: impl FnOnce(&Metadata) -> Result<Option<T>, &'static str>,
    ) -> (T, Origin) {
        if let Some(value) = given {
            return (value, Origin::Given);
        }
        match read(self.metadata) {
            Ok(Some(value)) => (value, Origin::File),
            Ok(None) => (default, Origin::Default),
            Err(wanted) => {
                let found = self.metadata.get(key).map(MetaValue::describe).unwrap_or_default();
                self.notes.push(format!(
                    "note: {}: {key}: found {found}, wanted {wanted}; the default {default} is taken, and {option} overrides it",
                    self.metadata.origin()
                ));
                (default, Origin::Default)
            }
        }
    }

    /// A number that belongs into a place of the options, and must be allowed there.
    fn number(
        &mut self,
        given: Option<f32>,
        names: (&str, &str),
        default: f32,
        place: fn(&mut SamplerOptions) -> &mut f32,
    ) -> (f32, Origin) {
        self.choose(given, names, default, |metadata| {
            let Some(value) = metadata.opt_f32(names.0).map_err(|_| "a float")? else { return Ok(None) };
            let mut options = SamplerOptions::GREEDY;
            *place(&mut options) = value;
            match options.check() {
                Err(SamplerError::Option { wanted, .. }) => Err(wanted),
                _ => Ok(Some(value)),
            }
        })
    }

    /// The number of tokens to choose among. To other runtimes −1 means all of them, so files say that, too.
    fn top_k(&mut self, given: Option<usize>) -> (usize, Origin) {
        let key = keys::SAMPLING_TOP_K;
        if given.is_none() && matches!(self.metadata.opt_integer(key), Ok(Some(-1))) {
            let file = self.metadata.origin();
            self.notes
                .push(format!("note: {file}: {key} is -1, taken as 0: all tokens; --top-k overrides it"));
            return (0, Origin::File);
        }
        self.choose(given, (key, "--top-k"), DEFAULT_TOP_K, |metadata| {
            let wanted = "a whole number, 0 for all tokens";
            let Some(k) = metadata.opt_integer(key).map_err(|_| wanted)? else { return Ok(None) };
            usize::try_from(k).map(Some).map_err(|_| wanted)
        })
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

    /// The sampler for a file, and what is to be said: a note for each value of the file that cannot be used, then the line
    /// that says what the sampler does and where each setting comes from.
    ///
    /// Errors: a value that was given is outside of its range.
    pub fn sampler(&self, metadata: &Metadata) -> Result<(Sampler, String), CliError> {
        let mut from = Chooser { metadata, notes: Vec::new() };
        let temperature = from
            .number(self.temp, (keys::SAMPLING_TEMP, "--temp"), DEFAULT_TEMPERATURE, |o| &mut o.temperature);
        let top_k = from.top_k(self.top_k);
        let top_p =
            from.number(self.top_p, (keys::SAMPLING_TOP_P, "--top-p"), DEFAULT_TOP_P, |o| &mut o.top_p);
        let min_p = from.number(self.min_p, (keys::SAMPLING_MIN_P, "--min-p"), 0.0, |o| &mut o.min_p);
        let penalty_names = (keys::SAMPLING_PENALTY_REPEAT, "--repetition-penalty");
        let penalty = from.number(self.repetition_penalty, penalty_names, 1.0, |o| &mut o.repetition_penalty);
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

        let mut line: String = from.notes.iter().flat_map(|note| [note, "\n"]).collect();
        line.push_str(&if options.temperature == 0.0 {
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
        });
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
        let (note, line) = line.split_once('\n').unwrap();
        assert_eq!(
            note,
            "note: f: general.sampling.top_k is -1, taken as 0: all tokens; --top-k overrides it"
        );
        assert_eq!(line, "sampling: temperature 0.5, top-k 0 (the file's), top-p 0.8 (default), seed 3");
        let (_, line) = SamplerArgs { top_k: Some(7), ..SamplerArgs::default() }.sampler(&metadata).unwrap();
        assert!(line.starts_with("sampling: temperature 0.25 (the file's), top-k 7, "), "{line}");
    }

    #[test]
    fn values_outside_of_their_range_are_bad_input() {
        let args = SamplerArgs { top_p: Some(2.0), ..SamplerArgs::default() };
        assert!(matches!(args.check(), Err(CliError::BadInput(_))));
    }

    /// What the file says and cannot mean is said, and the default is taken; what is given needs no note.
    #[test]
    fn values_of_the_file_that_cannot_be_used() {
        use MetaValue::{F32, F64, I32, String, U64};
        let args = SamplerArgs { seed: Some(3), ..SamplerArgs::default() };
        let defaults = args.sampler(&Metadata::from_pairs::<&str>("f", []).unwrap()).unwrap();
        for (key, option, values) in [
            (keys::SAMPLING_TEMP, "--temp", vec![F32(-0.5), F32(f32::NAN), F32(f32::INFINITY), I32(1)]),
            (keys::SAMPLING_TOP_K, "--top-k", vec![I32(-2), F32(20.0), String("20".into())]),
            (keys::SAMPLING_TOP_P, "--top-p", vec![F32(0.0), F32(1.5), F64(-1.0), F32(f32::NAN)]),
            (keys::SAMPLING_MIN_P, "--min-p", vec![F32(-0.1), F32(2.0), U64(0)]),
            (keys::SAMPLING_PENALTY_REPEAT, "--repetition-penalty", vec![F32(0.0), F32(-1.0)]),
        ] {
            for value in values {
                let found = value.describe();
                let metadata = Metadata::from_pairs("f.gguf", [(key, value)]).unwrap();
                let (sampler, said) = args.sampler(&metadata).unwrap();
                assert_eq!(sampler.options(), defaults.0.options(), "{key} {found}");
                let (note, line) = said.split_once('\n').unwrap();
                assert_eq!(line, defaults.1, "{key} {found}");
                for word in ["f.gguf: ", key, &format!("found {found},"), &format!("{option} overrides")] {
                    assert!(note.contains(word), "{word}: {note}");
                }
            }
        }
        let metadata = Metadata::from_pairs("f", [(keys::SAMPLING_TOP_P, F32(0.0))]).unwrap();
        let (_, said) = SamplerArgs { top_p: Some(0.5), ..args }.sampler(&metadata).unwrap();
        assert!(said.starts_with("sampling: "), "{said}");
    }
}
