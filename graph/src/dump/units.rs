//! Quantities as people read them: three significant digits with a unit.

/// `1.92 GB`; decimal units, as memory bandwidth is stated.
#[must_use]
pub fn bytes(n: u64) -> String {
    scaled(n as f64, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// `3.34 GFLOP`.
#[must_use]
pub fn flops(n: u64) -> String {
    scaled(n as f64, &["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"])
}

/// `57.3 GB/s`.
#[must_use]
pub fn bandwidth(bytes_per_s: f64) -> String {
    scaled(bytes_per_s, &["B/s", "kB/s", "MB/s", "GB/s", "TB/s", "PB/s"])
}

/// `12.4 µs`.
#[must_use]
pub fn seconds(s: f64) -> String {
    match s {
        s if s >= 1.0 => digits(s, "s"),
        s if s >= 1e-3 => digits(s * 1e3, "ms"),
        s if s >= 1e-6 => digits(s * 1e6, "µs"),
        s => digits(s * 1e9, "ns"),
    }
}

/// `3.1 %`.
#[must_use]
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn scaled(mut x: f64, units: &[&str]) -> String {
    let mut unit = 0;
    // 999.5 would print as 1000.
    while x >= 999.5 && unit + 1 < units.len() {
        x /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        return format!("{x:.0} {}", units[0]);
    }
    digits(x, units[unit])
}

fn digits(x: f64, unit: &str) -> String {
    let decimals = match x {
        x if x >= 99.95 => 0,
        x if x >= 9.995 => 1,
        _ => 2,
    };
    format!("{x:.decimals$} {unit}")
}

/// `0–5, 8, 11`: ascending numbers with their runs joined.
#[must_use]
pub fn ranges(numbers: &[usize]) -> String {
    let mut out = String::new();
    let mut i = 0;
    while i < numbers.len() {
        let first = numbers[i];
        while i + 1 < numbers.len() && numbers[i + 1] == numbers[i] + 1 {
            i += 1;
        }
        if !out.is_empty() {
            out.push_str(", ");
        }
        match numbers[i] - first {
            0 => out.push_str(&first.to_string()),
            1 => out.push_str(&format!("{first}, {}", numbers[i])),
            _ => out.push_str(&format!("{first}–{}", numbers[i])),
        }
        i += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit() {
        let all: Vec<String> = [0, 999, 1000, 9994, 9996, 99_949, 999_499, 999_500, 1_920_000_000]
            .into_iter()
            .map(bytes)
            .collect();
        let want =
            ["0 B", "999 B", "1.00 kB", "9.99 kB", "10.0 kB", "99.9 kB", "999 kB", "1.00 MB", "1.92 GB"];
        assert_eq!(all, want);
        assert_eq!(flops(2_500_000_000), "2.50 GFLOP");
        assert_eq!(bandwidth(60e9), "60.0 GB/s");
        assert_eq!(
            [seconds(2.0), seconds(0.0123), seconds(3.4e-6), seconds(5e-9)],
            ["2.00 s", "12.3 ms", "3.40 µs", "5.00 ns"]
        );
    }

    #[test]
    fn runs_are_joined() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8, 42]), "0–2, 5, 7, 8, 42");
        assert_eq!(ranges(&[]), "");
    }
}
