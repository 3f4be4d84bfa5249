//! A recipe: patterns of tensors' names, each with the format that what it matches is to have.

use thiserror::Error;

use crate::quant::{Format, UnknownFormat};

/// A line of a recipe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// A tensor's whole name; `*` stands for any characters, `?` for one.
    pub pattern: String,
    /// The format; `None` keeps that of the file.
    pub format: Option<Format>,
}

impl Rule {
    /// Whether it is about a tensor.
    pub(super) fn matches(&self, name: &str) -> bool {
        matches(self.pattern.as_bytes(), name.as_bytes())
    }
}

/// Rules, of which the first that matches a tensor holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recipe {
    /// In order.
    pub rules: Vec<Rule>,
}

/// What is no recipe.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// Something else than `pattern=FORMAT`.
    #[error("rule {found:?}: wanted PATTERN=FORMAT, such as blk.*.attn_v.weight=Q6_K, or PATTERN=keep")]
    Form {
        /// What stands there.
        found: String,
    },
    /// A format that there is not.
    #[error("rule {rule:?}: {source}")]
    Format {
        /// The rule.
        rule: String,
        /// Why.
        source: UnknownFormat,
    },
    /// A format that is not written.
    #[error("rule {rule:?}: {format} is not written, only read")]
    NotWritten {
        /// The rule.
        rule: String,
        /// The format.
        format: Format,
    },
    /// Nothing.
    #[error("the recipe has no rules")]
    Empty,
}

impl Recipe {
    /// Reads rules that stand between commas or line ends; what follows `#` in a line is a comment.
    ///
    /// # Errors
    /// [`RecipeError`].
    pub fn parse(text: &str) -> Result<Recipe, RecipeError> {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or(line));
        let parts = lines.flat_map(|line| line.split(',')).map(str::trim).filter(|rule| !rule.is_empty());
        let rules = parts.map(parse_rule).collect::<Result<Vec<Rule>, _>>()?;
        if rules.is_empty() {
            return Err(RecipeError::Empty);
        }
        Ok(Recipe { rules })
    }

    /// The first rule that matches a name, with its place.
    pub(super) fn find(&self, name: &str) -> Option<(usize, &Rule)> {
        self.rules.iter().enumerate().find(|(_, rule)| rule.matches(name))
    }
}

fn parse_rule(text: &str) -> Result<Rule, RecipeError> {
    let form = || RecipeError::Form { found: text.to_owned() };
    let (pattern, format) = text.split_once('=').ok_or_else(form)?;
    let (pattern, format) = (pattern.trim(), format.trim());
    if pattern.is_empty() || format.is_empty() {
        return Err(form());
    }
    let format = match format.eq_ignore_ascii_case("keep") {
        true => None,
        false => {
            let rule = || text.to_owned();
            let format =
                Format::parse(format).map_err(|source| RecipeError::Format { rule: rule(), source })?;
            if !format.is_written() {
                return Err(RecipeError::NotWritten { rule: rule(), format });
            }
            Some(format)
        }
    };
    Ok(Rule { pattern: pattern.to_owned(), format })
}

/// Whether a pattern matches a whole name. In time of their product at most: a star takes as little as it can, and only the
/// last one met takes more.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match &mut star {
                Some((star_p, taken)) => {
                    *taken += 1;
                    (p, n) = (*star_p + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        let is = |pattern: &str, name: &str| matches(pattern.as_bytes(), name.as_bytes());
        assert!(is("blk.*.attn_v.weight", "blk.12.attn_v.weight"));
        assert!(!is("blk.*.attn_v", "blk.12.attn_v.weight"));
        assert!(is("blk.?.*exps*", "blk.1.ffn_down_exps.weight") && !is("blk.?.*exps*", "blk.11.ffn_exps"));
        assert!(is("*a*b*c", "xxaabbxbc") && !is("*a*b*c", "xxaabbxb"));
        assert!(is("*", "") && !is("?", ""));
        // A hostile pattern ends.
        assert!(!is(&"*a".repeat(40), &"a".repeat(39)));
    }

    #[test]
    fn rules_are_read_from_lines_and_commas() {
        let recipe =
            Recipe::parse("*=q4_k, output.weight=Q6_K # not reached\n\n# a comment\nblk.0.*=keep").unwrap();
        let formats: Vec<Option<Format>> = recipe.rules.iter().map(|rule| rule.format).collect();
        assert_eq!(formats, [Some(Format::Q4K), Some(Format::Q6K), None]);
        assert_eq!(recipe.find("output.weight").unwrap().0, 0, "the first that matches");
        for (text, part) in [
            ("attn_v", "PATTERN=FORMAT"),
            ("=Q4_K", "PATTERN=FORMAT"),
            ("a=Q4_X", "Q4_X"),
            ("a=IQ2_XS", "not written"),
            (" # nothing", "no rules"),
        ] {
            let error = Recipe::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
