//! The rules of cutting, by the names that `tokenizer.ggml.pre` has for them.
//!
//! The patterns are published with the models (`tokenizer.json`, pre_tokenizer; Kimi-K2's in its `tokenization_kimi.py`); of
//! afmoe, laguna and "default" they are the ones that llama.cpp has under the name. Their one lookahead, `\s+(?!\S)|\s+` at a
//! pattern's end, is written `\s+` here, and [`pretokenize`](super::pretokenize) does the rest.

/// One way of cutting. The pieces of one are what the next cuts further.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Each match is a word, and what lies between two matches is one.
    Matches(&'static str),
    /// Numbers in groups of three characters, counted from the right.
    Groups(Groups),
}

/// Which numbers are cut into groups.
#[derive(Clone, Copy, Debug)]
pub enum Groups {
    /// Every run of `\p{N}`.
    Everywhere,
    /// Runs of decimal digits that end with a word: `\d{1,3}(?=(?:\d{3})*\b)`. The others are left whole.
    AtWordEnds,
}

/// How a family of models cuts.
#[derive(Debug)]
pub struct Rule {
    /// Names of `tokenizer.ggml.pre`. Converters name a pre-tokenizer after the model that they first saw it with, so one
    /// rule has several names; these are those that llama.cpp gives the same pattern.
    pub names: &'static [&'static str],
    /// One after the other.
    pub steps: &'static [Step],
    /// A word that is a token as a whole is taken before any merge.
    pub ignore_merges: bool,
    /// Whether a text begins with BOS where the file does not say.
    pub add_bos: bool,
}

use Step::Matches;

/// Qwen2, Qwen2.5, Qwen3 and Qwen3-MoE.
const QWEN2: Step = Matches(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
);
/// Qwen3.5: marks belong to letters.
const QWEN35: Step = Matches(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
);
/// Llama 3, which is GPT-4's: up to three digits are a word.
const LLAMA3: Step = Matches(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
);
/// GPT-4o: a word begins with an upper-case letter.
const GPT_4O: Step = Matches(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
);
/// GPT-4o's with each digit by itself.
const YOUTU: Step = Matches(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
);
/// Youtu's scripts and signs of East Asia, before the rest.
const YOUTU_SCRIPTS: Step = Matches(
    r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，\u{3001}-\u{303F}\u{FE30}-\u{FE4F}]+|[\u{3105}-\u{312F}]+|[一-龥\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+",
);
/// Mistral's Tekken: as GPT-4o's, without contractions, each digit by itself.
const TEKKEN: Step = Matches(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
);
/// Kimi-K2: as GPT-4o's, with Han characters by themselves.
const KIMI_K2: Step = Matches(
    r"\p{Han}+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
);
/// GPT-2: line ends are blanks like others.
const GPT_2: Step = Matches(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+");
/// Each digit by itself, before the rest.
const DIGIT: Step = Matches(r"\p{N}");
/// Up to three digits, before the rest.
const THREE_DIGITS: Step = Matches(r"\p{N}{1,3}");
/// Runs of digits, before the rest.
const DIGITS: Step = Matches(r"\p{N}+");
/// Ling.
const BAILING: Step = Matches(
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+",
);
/// EXAONE: words with single blanks between them are one.
const EXAONE_MOE: Step = Matches(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+",
);
/// Chinese and kana, before DeepSeek's.
const DEEPSEEK_SCRIPTS: Step = Matches(r"[一-龥\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+");
/// DeepSeek-V3: a sign of ASCII begins the word behind it.
const DEEPSEEK_V3: Step = Matches(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+"##,
);
/// AFMoE's scripts without blanks, before DeepSeek's.
const AFMOE_SCRIPTS: Step = Matches(
    r"[\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{F900}-\u{FAFF}\u{3040}-\u{309F}\u{30A0}-\u{30FF}\u{FF65}-\u{FF9F}\u{2F00}-\u{2FDF}\u{0E40}-\u{0E7F}\u{0E80}-\u{0EFF}\u{1780}-\u{17FF}\u{1000}-\u{109F}\u{AA60}-\u{AA7F}\u{A9E0}-\u{A9FF}\u{AC00}-\u{D7AF}\u{1100}-\u{11FF}]+",
);
/// One line end, before the rest.
const LINE_END: Step = Matches(r"[\r\n]");
/// DeepSeek's first: letters of scripts that have upper and lower case.
const DEEPSEEK_LETTERS: Step = Matches(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}ℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
);
/// … its signs, …
const DEEPSEEK_SIGNS: Step = Matches(r"\s?[!-/:-~！-／：-～‘-‟\u{3000}-\u{3002}]+");
/// … blanks at the end of a line, …
const DEEPSEEK_BLANKS: Step = Matches(r"\s+$");
/// … and East Asia.
const DEEPSEEK_EAST: Step = Matches(r"[一-龥\u{0800}-一\u{AC00}-\u{D7FF}]+");
/// Lines and runs of line ends.
const LINES: Step = Matches(r"[^\n]+|\n+");
/// Signs, before GPT-2's: Falcon's, which is "default".
const DEFAULT_SIGNS: Step = Matches(r"[\p{P}$+<=>^~|]+");
/// Three digits of ASCII, after GPT-2's.
const DEFAULT_DIGITS: Step = Matches(r"[0-9][0-9][0-9]");

/// The name of the rule that a file without one, or with an empty one, is cut by, and that says so.
pub const DEFAULT: &str = "default";

/// All rules.
pub const RULES: &[Rule] = &[
    Rule {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        steps: &[QWEN2],
        ignore_merges: false,
        add_bos: false,
    },
    Rule { names: &["qwen35"], steps: &[QWEN35], ignore_merges: false, add_bos: false },
    Rule {
        names: &["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        steps: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    Rule { names: &["glm4", "glm5"], steps: &[LLAMA3], ignore_merges: true, add_bos: false },
    Rule {
        names: &["dbrx", "smaug-bpe", "chatglm-bpe"],
        steps: &[LLAMA3],
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        steps: &[GPT_4O],
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &[
            "gpt-2",
            "phi-2",
            "gigachat",
            "mellum",
            "exaone4",
            "olmo",
            "granite-docling",
            "trillion",
            "mpt",
        ],
        steps: &[GPT_2],
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &[
            "refact",
            "command-r",
            "starcoder",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        steps: &[DIGIT, GPT_2],
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        steps: &[BAILING],
        ignore_merges: false,
        add_bos: false,
    },
    Rule { names: &["exaone-moe"], steps: &[EXAONE_MOE], ignore_merges: false, add_bos: false },
    Rule {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        steps: &[THREE_DIGITS, DEEPSEEK_SCRIPTS, DEEPSEEK_V3],
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &["deepseek-llm"],
        steps: &[LINE_END, DEEPSEEK_LETTERS, DEEPSEEK_SIGNS, DEEPSEEK_BLANKS, DEEPSEEK_EAST, DIGITS],
        ignore_merges: false,
        add_bos: false,
    },
    Rule { names: &["tekken"], steps: &[TEKKEN], ignore_merges: true, add_bos: true },
    Rule { names: &["kimi-k2"], steps: &[KIMI_K2], ignore_merges: false, add_bos: false },
    Rule {
        names: &["cohere2moe", "tiny_aya"],
        steps: &[Step::Groups(Groups::AtWordEnds), GPT_4O],
        ignore_merges: false,
        add_bos: false,
    },
    Rule { names: &["youtu"], steps: &[YOUTU_SCRIPTS, YOUTU], ignore_merges: true, add_bos: false },
    Rule {
        names: &["afmoe"],
        steps: &[Step::Groups(Groups::Everywhere), AFMOE_SCRIPTS, DEEPSEEK_V3],
        ignore_merges: false,
        add_bos: false,
    },
    Rule { names: &["laguna"], steps: &[LINES, QWEN2], ignore_merges: false, add_bos: false },
    Rule {
        names: &[DEFAULT],
        steps: &[DEFAULT_SIGNS, GPT_2, DIGITS, DEFAULT_DIGITS],
        ignore_merges: false,
        add_bos: false,
    },
];
