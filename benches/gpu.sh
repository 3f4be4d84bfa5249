#!/usr/bin/env bash
# Checks and measures the CUDA backend on a machine with an NVIDIA GPU; needs no network, and nothing but the built binary and
# this repository's fixtures. One table comes out, for benches/RESULTS.md.
#
#   benches/gpu.sh [--bin FILE] [--device N] [--out DIR] [--model FILE] [--llama-bench FILE] [--no-checks]
#
#   --bin FILE          the built binary (default: target/release/moe-run)
#   --device N          the GPU, as `moe-run devices` lists it (default: 0)
#   --out DIR           where model, logs and table go (default: target/gpu; the model takes 18.6 GB)
#   --model FILE        measure this file instead of a synthetic one of Qwen3-Coder-30B-A3B's shapes
#   --llama-bench FILE  llama.cpp's llama-bench, run in turns with ours on the same file
#   --no-checks         measurements alone
#   --dry               everything in small on the host harness, to see that the script works; its times mean nothing
#
# Order: op cases and demo model (selftest), stage files, compute-sanitizer (where it is installed), then decode and prompt, with
# what each switched-off feature costs. Meant to fit in eight minutes on an H100: each step has a limit, and one that fails is
# reported and does not stop the rest. Exit status: 0 if every check passed and every measurement ran, else 1.
set -uo pipefail
cd "$(dirname "$0")/.."

bin=target/release/moe-run device=0 out=target/gpu model="" llama="" checks=1 dry=0
while [ $# -gt 0 ]; do
  case "$1" in
    --bin) bin=$2; shift 2 ;;
    --device) device=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --model) model=$2; shift 2 ;;
    --llama-bench) llama=$2; shift 2 ;;
    --no-checks) checks=0; shift ;;
    --dry) dry=1 device=host-harness; shift ;;
    -h|--help) sed -n '2,18p' "$0"; exit 0 ;;
    *) echo "benches/gpu.sh: unknown argument '$1' (try --help)" >&2; exit 2 ;;
  esac
done
[ -x "$bin" ] || { echo "benches/gpu.sh: no binary at $bin (cargo build --release, or --bin FILE)" >&2; exit 2; }

mkdir -p "$out/logs"
table=$out/gpu.md failed=0 SECONDS=0
on=(--backend cuda --device "$device")
tiny=tests/models/tiny-qwen3moe-q4_k_m.gguf
printf '| step | result | s |\n|---|---|---:|\n' >"$out/steps.md"

# step NAME LIMIT_S COMMAND…: output to logs/NAME, and a line of the table.
step() {
  local name=$1 limit=$2 from=$SECONDS verdict=passed
  shift 2
  # In small it runs on any machine, however busy: a limit then only ends what hangs.
  [ "$dry" = 0 ] || limit=1800
  timeout "$limit" "$@" >"$out/logs/$name" 2>"$out/logs/$name.err" || verdict="FAILED ($?)"
  if [ "$verdict" != passed ]; then
    failed=1
    tail -n 5 "$out/logs/$name.err" >&2
  fi
  printf '%4d s  %-28s %s\n' "$SECONDS" "$name" "$verdict" >&2
  printf '| %s | %s | %d |\n' "$name" "$verdict" $((SECONDS - from)) >>"$out/steps.md"
  [ "$verdict" = passed ]
}

# Every model with stored stages: in f32 with an f32 cache, as a prompt and with its last token decoded.
stage_files() {
  local stages gguf decode n=0 most=1000
  [ "$dry" = 0 ] || most=2
  for stages in tests/fixtures/micro/*.stages.safetensors; do
    gguf=${stages%.stages.safetensors}.gguf
    [ -e "$gguf" ] && [ "$n" -lt "$most" ] || continue
    n=$((n + 1))
    for decode in 0 1; do
      step "stages-$(basename "$gguf" .gguf)-$decode" 30 \
        "$bin" parity -m "$gguf" "${on[@]}" --against "$stages" --decode "$decode"
    done
  done
  [ "$n" -gt 0 ] || { echo "no stage files found" >&2; failed=1; }
}

sanitizer() {
  local tool command
  command=$(command -v compute-sanitizer || true)
  [ -n "$command" ] || for tool in /usr/local/cuda/bin/compute-sanitizer /opt/nvidia/compute-sanitizer/compute-sanitizer; do
    [ -x "$tool" ] && command=$tool
  done
  if [ -z "$command" ]; then
    echo "compute-sanitizer is not installed: memcheck and racecheck were not run" >&2
    printf '| compute-sanitizer | not installed | 0 |\n' >>"$out/steps.md"
    return
  fi
  for tool in memcheck racecheck; do
    # Overlapping launches are switched off: the tools look at one kernel at a time.
    step "sanitizer-$tool" 90 env MOE_RUN_CUDA_OFF=overlap "$command" --tool "$tool" --error-exitcode 9 \
      "$bin" run -m "$tiny" "${on[@]}" -p 'What is 2+2?' -n 4 --temp 0
  done
}

# bench NAME LIMIT_S ARGUMENTS…
bench() {
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" "$bin" bench -m "$model" "${on[@]}" "$@"
}

if [ "$checks" = 1 ]; then
  [ "$dry" = 1 ] || step selftest 90 "$bin" selftest "${on[@]}"
  stage_files
  [ "$dry" = 1 ] || sanitizer
fi

if [ -z "$model" ]; then
  if [ "$dry" = 1 ]; then
    model=$tiny
  else
    model=$out/qwen3-coder-30b-a3b.gguf
    [ -e "$model" ] || step synth 120 "$bin" synth --preset qwen3-coder-30b-a3b -o "$model"
  fi
fi

if [ "$dry" = 1 ]; then
  prompts=12 depths=0,16 tokens=2 repetitions=1 deep=16
else
  prompts=512,4096 depths=0,4096,16384 tokens=128 repetitions=3 deep=16384
fi
turns=1
[ -z "$llama" ] || turns=2
for turn in $(seq "$turns"); do
  bench "decode-$turn" 90 -p 0 -n "$tokens" -d "$depths" -r "$repetitions"
  bench "greedy-$turn" 60 -p 0 -n "$tokens" -r "$repetitions" --greedy
  bench "prompt-$turn" 60 -p "$prompts" -n 0 -r "$repetitions"
  if [ -n "$llama" ]; then
    step "llama-decode-$turn" 90 "$llama" -m "$model" -ngl 99 -fa 1 -p 0 -n "$tokens" -d "$depths" -r "$repetitions" -o md
    step "llama-prompt-$turn" 60 "$llama" -m "$model" -ngl 99 -fa 1 -p "$prompts" -n 0 -ub 512 -r "$repetitions" -o md
  fi
done
bench profile-decode 60 -p 0 -n 4 -d "0,$deep" -r 1 --profile
bench profile-prompt 60 -p "${prompts%%,*}" -n 0 -r 1 --profile
for feature in overlap matrix-units graph; do
  MOE_RUN_CUDA_OFF=$feature bench "without-$feature" 60 -p "${prompts%%,*}" -n "$tokens" -r 1
done

{
  echo "# CUDA on $(date -u +%Y-%m-%d)"
  echo
  if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.memory --format=csv,noheader | sed 's/^/- GPU: /'
  fi
  "$bin" devices 2>/dev/null | sed 's/^/    /'
  echo
  cat "$out/steps.md"
  for log in "$out"/logs/decode-* "$out"/logs/greedy-* "$out"/logs/prompt-* "$out"/logs/llama-* "$out"/logs/profile-* "$out"/logs/without-*; do
    case "$log" in *.err | *'*') continue ;; esac
    printf '\n## %s\n\n' "$(basename "$log")"
    cat "$log"
  done
} >"$table"

# Ours over theirs, turn by turn: the tests have the same names on both sides (pp512, tg128 @ d4096).
if [ -n "$llama" ]; then
  rates() { # FILE COLUMN_OF_TEST COLUMN_OF_RATE
    awk -F'|' -v t="$2" -v r="$3" '/\| *(pp|tg)[0-9]/ { gsub(/^ +| +$/, "", $t); split($r, v, " "); print $t "\t" v[1] }' "$1"
  }
  {
    printf '\n## Ratios to llama.cpp\n\n| test | turn | moe-run | llama.cpp | ratio |\n|---|---:|---:|---:|---:|\n'
    for turn in $(seq "$turns"); do
      for kind in decode prompt; do
        theirs=$out/logs/llama-$kind-$turn
        columns=$(awk -F'|' '/\| *model/ { for (i = 1; i <= NF; i++) { gsub(/ /, "", $i); if ($i == "test") t = i; if ($i == "t/s") r = i } print t, r; exit }' "$theirs")
        # shellcheck disable=SC2086
        join -t "$(printf '\t')" <(rates "$out/logs/$kind-$turn" 2 4 | sort) <(rates "$theirs" ${columns:-8 9} | sort) \
          | awk -F'\t' -v turn="$turn" '$3 > 0 { printf "| %s | %d | %s | %s | %.2f |\n", $1, turn, $2, $3, $2 / $3 }'
      done
    done
  } >>"$table"
fi
echo "$SECONDS s; table: $table" >&2
exit "$failed"
