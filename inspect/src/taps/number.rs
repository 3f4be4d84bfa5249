//! Numbers in JSON, which has no NaN and no infinity: those are the strings "NaN", "Infinity" and "-Infinity".

use serde::{Serialize, Serializer};

/// A number that is written as a JSON number where it is finite, and as one of the three strings where it is not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Num<T>(pub T);

impl Serialize for Num<f64> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        f64(&self.0, serializer)
    }
}

impl Serialize for Num<f32> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_finite() {
            serializer.serialize_f32(self.0)
        } else {
            f64(&f64::from(self.0), serializer)
        }
    }
}

/// For `#[serde(serialize_with)]` on a field.
///
/// # Errors
/// The serializer's.
pub fn f64<S: Serializer>(x: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if x.is_finite() {
        serializer.serialize_f64(*x)
    } else if x.is_nan() {
        serializer.serialize_str("NaN")
    } else if *x > 0.0 {
        serializer.serialize_str("Infinity")
    } else {
        serializer.serialize_str("-Infinity")
    }
}

#[cfg(test)]
mod tests {
    use super::Num;

    #[test]
    fn non_finite_numbers_are_strings() {
        let numbers = [Num(1.5), Num(f64::NAN), Num(f64::INFINITY), Num(f64::NEG_INFINITY)];
        assert_eq!(serde_json::to_string(&numbers).unwrap(), r#"[1.5,"NaN","Infinity","-Infinity"]"#);
        let numbers = [Num(0.1f32), Num(-f32::INFINITY), Num(f32::NAN)];
        assert_eq!(serde_json::to_string(&numbers).unwrap(), r#"[0.1,"-Infinity","NaN"]"#);
    }
}
