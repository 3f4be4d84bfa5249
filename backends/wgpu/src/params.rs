//! Stage 5, wgpu: a dispatch's parameters by name, in the order in which its shader declares them.

use super::shader::{ComposeError, Variant};

/// One parameter: offsets, sizes and flags are u32, factors f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Param {
    U32(u32),
    F32(f32),
}

impl From<u32> for Param {
    fn from(value: u32) -> Self {
        Param::U32(value)
    }
}

impl From<f32> for Param {
    fn from(value: f32) -> Self {
        Param::F32(value)
    }
}

/// The words of the uniform buffer for `struct Params` of the shader's text. Every field must be given, with its type,
/// and nothing else.
pub(super) fn pack(
    variant: &Variant,
    text: &str,
    given: &[(&'static str, Param)],
) -> Result<Vec<u32>, ComposeError> {
    let wrong = |detail: String| ComposeError {
        shader: variant.to_string(),
        part: "struct Params".into(),
        line: 0,
        detail,
    };
    let body = text
        .split_once("struct Params {")
        .and_then(|(_, rest)| rest.split_once('}'))
        .ok_or_else(|| wrong("the shader has none".into()))?
        .0;
    let fields = body.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("//"));
    let mut words = Vec::new();
    for field in fields {
        let (name, ty) = field
            .trim_end_matches(',')
            .split_once(": ")
            .ok_or_else(|| wrong(format!("cannot read '{field}'")))?;
        let value = given.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        words.push(match (ty, value) {
            ("u32", Some(Param::U32(v))) => v,
            ("f32", Some(Param::F32(v))) => v.to_bits(),
            (_, found) => return Err(wrong(format!("{name}: {ty} was given {found:?}"))),
        });
    }
    if words.len() != given.len() {
        return Err(wrong(format!("{} fields, {} values", words.len(), given.len())));
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shader::Features;

    #[test]
    fn fields_are_matched_by_name_and_type() {
        let variant = Variant::new("test", Features::default(), &[]);
        let text = "struct Params {\n    x: u32,\n    // A factor.\n    eps: f32,\n}\n";
        let given = [("eps", Param::F32(0.5)), ("x", Param::U32(7))];
        assert_eq!(pack(&variant, text, &given), Ok(vec![7, 0.5f32.to_bits()]));
        assert!(pack(&variant, text, &given[..1]).unwrap_err().detail.contains('x'));
        let extra = [given[0], given[1], ("y", Param::U32(1))];
        assert!(pack(&variant, text, &extra).is_err());
        assert!(pack(&variant, text, &[("eps", Param::U32(1)), given[1]]).is_err());
    }
}
