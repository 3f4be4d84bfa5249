//! The mixtures of formats that files are known by: which tensors get more bits than the others.
//!
//! The rules are those of llama.cpp (llama-quant.cpp), so that a name means the same formats here and there.

use crate::gguf::keys::{layer, tensor};
use crate::quant::Format;

/// A named mixture.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mixture {
    /// What `--format` takes.
    pub name: &'static str,
    /// The format of every matrix that no rule speaks of.
    pub base: Format,
    /// `general.file_type`.
    pub file_type: u32,
}

const fn mixture(name: &'static str, base: Format, file_type: u32) -> Mixture {
    Mixture { name, base, file_type }
}

/// All of them.
pub const MIXTURES: [Mixture; 9] = [
    mixture("Q2_K_S", Format::Q2K, 21),
    mixture("Q3_K_S", Format::Q3K, 11),
    mixture("Q3_K_M", Format::Q3K, 12),
    mixture("Q3_K_L", Format::Q3K, 13),
    mixture("Q4_K_S", Format::Q4K, 14),
    mixture("Q4_K_M", Format::Q4K, 15),
    mixture("Q5_K_S", Format::Q5K, 16),
    mixture("Q5_K_M", Format::Q5K, 17),
    mixture("MXFP4_MOE", Format::Q8_0, 38),
];

/// What a mixture is told of a matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix<'a> {
    /// The name behind `blk.<i>.`, or the whole name of one that belongs to no layer.
    pub rest: &'a str,
    /// The layer, and how many there are.
    pub layer: usize,
    pub num_layers: usize,
    /// How many matrices like v_proj came before, and how many there are.
    pub values_before: usize,
    pub num_values: usize,
    /// Experts of a layer; 0 of a model without.
    pub num_experts: usize,
    /// Query heads of a KV head.
    pub group_size: usize,
    /// The embedding table is lm_head too.
    pub tied: bool,
}

/// Whether a matrix's results are values: v_proj, or one that v_proj is a part of.
pub(super) fn makes_values(rest: &str) -> bool {
    [layer::ATTN_V, layer::ATTN_QKV, layer::ATTN_KV_B].contains(&rest)
}

/// Whether layer `i` of `n` is one of those that get more bits: the first and the last eighth, and every third between.
pub(crate) fn more_bits(i: usize, n: usize) -> bool {
    i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
}

/// Experts of Mixtral and those like it, which have small k_proj and v_proj.
const FEW_EXPERTS: usize = 8;

impl Mixture {
    /// The mixture of this name, in any case.
    #[must_use]
    pub fn parse(name: &str) -> Option<Mixture> {
        MIXTURES.into_iter().find(|mixture| mixture.name.eq_ignore_ascii_case(name))
    }

    /// The format of a matrix.
    pub(super) fn format(self, m: &Matrix<'_>) -> Format {
        let down = m.rest.starts_with("ffn_down");
        if m.rest == tensor::OUTPUT || m.tied && m.rest == tensor::TOKEN_EMBD {
            return if self.base == Format::Q8_0 { Format::Q8_0 } else { Format::Q6K };
        }
        if self.name == "MXFP4_MOE" {
            return if m.rest.contains("_exps.") { Format::Mxfp4 } else { Format::Q8_0 };
        }
        if m.num_experts == FEW_EXPERTS {
            match m.rest {
                layer::ATTN_K => return Format::Q8_0,
                rest if makes_values(rest) => return Format::Q8_0,
                layer::ATTN_OUTPUT if ["Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M"].contains(&self.name) => {
                    return Format::Q5K;
                }
                _ => {}
            }
        }
        let values = makes_values(m.rest);
        let out = m.rest == layer::ATTN_OUTPUT && m.num_experts != FEW_EXPERTS;
        let first = |part: usize| m.layer < m.num_layers / part;
        match self.name {
            "Q2_K_S" if values && m.group_size >= 4 => Format::Q4K,
            "Q2_K_S" if down && first(8) => Format::Q4K,
            "Q3_K_M" if values && m.values_before < 2 => Format::Q5K,
            "Q3_K_M" if down && first(16) => Format::Q5K,
            "Q3_K_M" if values || down || out => Format::Q4K,
            "Q3_K_L" if values || down || out => Format::Q5K,
            "Q4_K_S" if values && m.values_before < 4 => Format::Q5K,
            "Q4_K_S" if down && first(8) => Format::Q5K,
            "Q4_K_M" | "Q5_K_M" if values && more_bits(m.values_before, m.num_values) => Format::Q6K,
            "Q4_K_M" | "Q5_K_M" if down && more_bits(m.layer, m.num_layers) => Format::Q6K,
            _ => self.base,
        }
    }
}

/// `general.file_type` of a file whose matrices all have one format, where it has a number of its own.
pub(super) fn file_type(format: Format) -> Option<u32> {
    match format {
        Format::F32 => Some(0),
        Format::F16 => Some(1),
        Format::Q4_0 => Some(2),
        Format::Q4_1 => Some(3),
        Format::Q8_0 => Some(7),
        Format::Q5_0 => Some(8),
        Format::Q5_1 => Some(9),
        Format::Q2K => Some(10),
        Format::Q3K => Some(11),
        Format::Q4K => Some(14),
        Format::Q5K => Some(16),
        Format::Q6K => Some(18),
        Format::Iq4Nl => Some(25),
        Format::Iq4Xs => Some(30),
        Format::Bf16 => Some(32),
        _ => None,
    }
}

/// The format that stands in for one whose blocks do not divide a row of `cols` elements: as many bits or more in blocks
/// of 32, else F16.
pub(super) fn stand_in(format: Format, cols: usize) -> Format {
    let fits = |format: Format| cols.is_multiple_of(format.block_elems());
    let small = match format {
        Format::Q2K | Format::Q3K => Format::Q4_0,
        Format::Iq4Xs => Format::Iq4Nl,
        Format::Q4K => Format::Q5_0,
        Format::Q5K => Format::Q5_1,
        Format::Q6K => Format::Q8_0,
        other => other,
    };
    [format, small].into_iter().find(|f| fits(*f)).unwrap_or(Format::F16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_rows_without_whole_blocks_get_a_stand_in() {
        assert_eq!(Mixture::parse("q4_k_m").unwrap().file_type, 15);
        assert_eq!(Mixture::parse("Q4_K"), None, "a format, not a mixture");
        assert_eq!(stand_in(Format::Q4K, 512), Format::Q4K);
        assert_eq!(stand_in(Format::Q4K, 96), Format::Q5_0);
        assert_eq!(stand_in(Format::Q6K, 32), Format::Q8_0);
        assert_eq!(stand_in(Format::Q8_0, 33), Format::F16);
        assert_eq!(stand_in(Format::Iq4Xs, 20), Format::F16);
    }

    #[test]
    fn q4_k_m_is_what_real_files_have() {
        let matrix = |rest, i| Matrix {
            rest,
            layer: i,
            num_layers: 48,
            values_before: i,
            num_values: 48,
            num_experts: 128,
            group_size: 8,
            tied: false,
        };
        let q4 = Mixture::parse("Q4_K_M").unwrap();
        let down = |i| q4.format(&matrix(layer::FFN_DOWN_EXPS, i));
        assert_eq!([5, 6, 7, 8, 41, 42].map(down), {
            use Format::{Q4K, Q6K};
            [Q6K, Q4K, Q4K, Q6K, Q6K, Q6K]
        });
        assert_eq!(q4.format(&matrix(layer::ATTN_K, 0)), Format::Q4K);
        assert_eq!(q4.format(&matrix(tensor::OUTPUT, 0)), Format::Q6K);
        assert_eq!(q4.format(&matrix(tensor::TOKEN_EMBD, 0)), Format::Q4K);
        let few = Matrix { num_experts: 8, ..matrix(layer::ATTN_OUTPUT, 20) };
        assert_eq!(q4.format(&few), Format::Q5K);
    }
}
