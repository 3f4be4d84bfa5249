//! The examples at the end of each command's `--help`: each is parsed by this crate's tests, so none can go out of date
//! unnoticed.

/// Of `run`, and of `moe-run` without a command.
pub const RUN: &str = "\
Examples:
  moe-run -p 'What is 2+2?'                             ask the built-in demo model
  moe-run -m model.gguf --device cuda:0,cpu -p 'Why is the sky blue?'    ask a model on a GPU and the host
  git diff | moe-run -m model.gguf --system 'Review this change.'
  moe-run -m model.gguf --temp 0 -n 100 --json -f question.txt
  moe-run completions bash > moe-run.bash
";

/// Of `chat`.
pub const CHAT: &str = "\
Examples:
  moe-run chat
  moe-run chat -m model.gguf --system 'You answer in one sentence.'
";

/// Of `serve`.
#[cfg(feature = "serve")]
pub const SERVE: &str = "\
Examples:
  moe-run serve                                         the built-in demo model, at http://127.0.0.1:8080
  moe-run serve -m model.gguf --ctx-size 16384 --parallel 4 --device cuda:0,cuda:1      layers on two GPUs
  moe-run serve -m model.gguf --host 0.0.0.0 --port 8000 --api-key sk-local --alias my-model
  moe-run serve -m model.gguf --temp 0 --max-step-ms 100 --log-json
  moe-run serve -m model.gguf --cache-file model.cache  prompts that were read need no reading after a restart

  curl http://127.0.0.1:8080/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}'

What it answers, and how it is run for others: docs/serving.md
";

/// Of `tokenize`.
pub const TOKENIZE: &str = "\
Examples:
  moe-run tokenize 'What is 2+2?'
  moe-run tokenize -m vocab.gguf --json -f text.txt
  moe-run tokenize -m model.gguf --messages chat.json
  moe-run tokenize --messages chat.json --chat-template template.jinja --render-only
";

/// Of `parse`.
pub const PARSE: &str = "\
Examples:
  moe-run parse --chat-template template.jinja -f answer.txt
  moe-run parse -m model.gguf --tools tools.json --messages chat.json -f answer.txt
  moe-run parse --chat-template template.jinja --template-var enable_thinking=false --unfinished -f answer.txt
  moe-run parse --chat-template template.jinja --deltas -f answer.txt      as it would be streamed
";

/// Of `trace`.
pub const TRACE: &str = "\
Examples:
  moe-run trace -p 'What is 2+2?'
  moe-run trace -m model.gguf --stages all --positions all --json -f prompt.txt
  moe-run trace --routing experts.jsonl --routing-plot experts.svg -p 'What is 2+2?'
  moe-run trace -m model.gguf --routing experts.jsonl -c 512 -f text.txt      a text in chunks
  moe-run trace --save-tensor attn_norm,moe_topk_ids --save-tensor-layers 0..2 --save-tensor-dir a -p 'Hi'
";

/// Of `graph`.
pub const GRAPH: &str = "\
Examples:
  moe-run graph                                         what lowering made of the model
  moe-run graph --level plan --backend cpu              launches, bytes and costs
  moe-run graph -m model.gguf --level plan --format html -o plan.html
  moe-run graph --backend cpu --profile --step-tokens 32
";

/// Of `diff`.
pub const DIFF: &str = "\
Examples:
  moe-run diff a b                                      two directories that `trace --save-tensor` wrote
  moe-run diff a b --tolerance 1e-3 --limit 5
  moe-run diff a/layer-0/attn_norm.bin b/layer-0/attn_norm.bin --json
";

/// Of `parity`.
pub const PARITY: &str = "\
Examples:
  moe-run parity --backend cpu --against reference -p 'What is 2+2?'
  moe-run parity -m model.gguf --against reference --activations f32 --decode 4 -f prompt.txt
  moe-run parity -m model.gguf --against stages.safetensors --json
";

/// Of `place`.
pub const PLACE: &str = "\
Examples:
  moe-run place -m model.gguf --for 4090+64GB            a machine that need not be here
  moe-run place -m model.gguf --for 2x3090+128GB@90 --ctx-size 32768 --kv-type q8_0 --json
  moe-run place -m model.gguf --device cuda:0,cpu --device-memory cuda:0=8GiB --bandwidth cuda:0=360
  moe-run place -m model.gguf --for 4090+64GB --expert-stats experts.jsonl      what `trace --routing` wrote

docs/placement.md says how devices share a model.
";

/// Of `devices`.
pub const DEVICES: &str = "\
Examples:
  moe-run devices
  moe-run devices --json
";

/// Of `inspect`.
pub const INSPECT: &str = "\
Examples:
  moe-run inspect                                       the built-in demo model
  moe-run inspect -m model.gguf --ctx-size 32768
  moe-run inspect -m model.gguf --all                   every key and every tensor
  moe-run inspect -m model.gguf --check --json
";

/// Of `bench`.
pub const BENCH: &str = "\
Examples:
  moe-run bench -p 64 -n 16 -r 2
  moe-run bench -m model.gguf --depth 0,1024 --threads 1,2
  moe-run bench -m model.gguf --backend cpu -p 512 -n 0 --profile
  moe-run bench -m model.gguf --greedy --json
  moe-run bench -m model.gguf -p 128,512 --csv
";

/// Of `perplexity`.
pub const PERPLEXITY: &str = "\
Examples:
  moe-run perplexity -f text.txt --chunks 4
  moe-run perplexity -m model.gguf -f text.txt --activations f32 --save-logits base.logits
  moe-run perplexity -m model.gguf -f text.txt --against base.logits
";

/// Of `quantize`.
pub const QUANTIZE: &str = "\
Examples:
  moe-run quantize -m model-f16.gguf -o model-q4.gguf --format Q4_K_M
  moe-run quantize -m model-f16.gguf --format Q4_K_M --dry-run        the table, nothing written
  moe-run quantize -m in.gguf -o out.gguf --format Q4_K --importance model.imatrix.gguf
  moe-run quantize -m in.gguf -o out.gguf --format Q4_K --recipe 'output.weight=Q8_0,*attn_v*=Q6_K'
  moe-run quantize -m in.gguf -o out.gguf --target-bits 4.5 -f text.txt --importance model.imatrix.gguf
";

/// Of `importance`.
pub const IMPORTANCE: &str = "\
Examples:
  moe-run importance -m model.gguf -f text.txt -o model.imatrix.gguf
  moe-run importance -m model.gguf -f text.txt --chunks 32 -o model.imatrix.gguf --json
";

/// Of `synth`.
pub const SYNTH: &str = "\
Examples:
  moe-run synth --preset qwen3-coder-30b-a3b --dry-run -o big.gguf
  moe-run synth --preset qwen3-coder-30b-a3b --layers 1 -o one-layer.gguf
  moe-run synth --preset qwen3-coder-30b-a3b --layers 1 --format iq3_s -o one-layer.gguf
";

/// Of `selftest`.
pub const SELFTEST: &str = "\
Examples:
  moe-run selftest
  moe-run selftest --backend cpu --json
";

/// Of `completions`.
pub const COMPLETIONS: &str = "\
Examples:
  moe-run completions bash > ~/.local/share/bash-completion/completions/moe-run
  moe-run completions fish > ~/.config/fish/completions/moe-run.fish
  moe-run completions zsh > _moe-run                    in a directory of $fpath
";

/// The architectures that can be run, in lines of a terminal's width.
pub fn architectures() -> String {
    const COLUMNS: usize = 80;
    let mut text = "Architectures that can be run:\n ".to_owned();
    let mut column = 1;
    for row in moe_run_graph::architectures::ARCHITECTURES {
        if column + 1 + row.name.len() > COLUMNS {
            text.push_str("\n ");
            column = 1;
        }
        text.push(' ');
        text.push_str(row.name);
        column += 1 + row.name.len();
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use crate::args::Cli;

    /// The arguments of an example's `moe-run`: what stands behind a gap of two spaces is an explanation, what stands
    /// behind `>` is the shell's.
    fn arguments(example: &str) -> Vec<String> {
        let command = &example[example.find("moe-run").expect("the program's name")..];
        let command = command.split("  ").next().unwrap_or(command);
        let command = command.split(" > ").next().unwrap_or(command);
        // Quotes group words; no example nests them.
        let parts = command.split('\'').enumerate();
        parts
            .flat_map(|(number, part)| match number % 2 {
                0 => part.split_whitespace().map(str::to_owned).collect(),
                _ => vec![part.to_owned()],
            })
            .collect()
    }

    #[test]
    fn every_command_has_examples_that_parse() {
        let root = Cli::command();
        for command in std::iter::once(&root).chain(root.get_subcommands()) {
            let name = command.get_name();
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = help.split("Examples:\n").nth(1).unwrap_or_default();
            let examples: Vec<&str> = examples.lines().take_while(|line| line.starts_with("  ")).collect();
            assert!((2..=5).contains(&examples.len()), "{name}: {examples:?}");
            for example in examples {
                assert!(example.len() <= 110, "{example}");
                let arguments = arguments(example);
                let cli = Cli::try_parse_from(&arguments).unwrap_or_else(|e| panic!("{arguments:?}: {e}"));
                // Each command's examples are of that command; `run` may be left out.
                let own =
                    arguments[1] == name || (["run", "moe-run"].contains(&name) && cli.command.is_none());
                assert!(own || example.contains("completions"), "{name}: {example}");
            }
        }
    }
}
