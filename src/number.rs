//! Numbers as people write them on a command line: `4096`, `0x1000`, `4K`, `1.5` is refused.

use anyhow::{Result, bail};

/// Parses a number of bytes: decimal or `0x` hexadecimal, `_` between digits, and with a decimal number one of
/// the binary suffixes K, M, G, T, P, which may be written `KiB` too.
pub fn parse_size(text: &str) -> Result<u64> {
    let trimmed = text.trim();
    let hint = "write it as 4096, 0x1000, 4K, 2M, 42G or 1T";
    let (digits, radix, shift) = match trimmed.strip_prefix("0x").or_else(|| trimmed.strip_prefix("0X")) {
        Some(hex) => (hex, 16, 0),
        None => suffix(trimmed),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix) || c == '_') || digits.starts_with('_') {
        bail!("'{text}' is not a number of bytes: {hint}");
    }
    let number = u64::from_str_radix(&digits.replace('_', ""), radix).ok();
    match number.and_then(|number| number.checked_mul(1 << shift)) {
        Some(number) => Ok(number),
        None => bail!("'{text}' is too large: the largest offset is {:#x}", u64::MAX),
    }
}

/// The number before a binary suffix, its radix, and the power of two that the suffix stands for.
fn suffix(text: &str) -> (&str, u32, u32) {
    let plain = text.strip_suffix("iB").unwrap_or(text);
    let shift = match plain.chars().last().map(|c| c.to_ascii_uppercase()) {
        Some('K') => 10,
        Some('M') => 20,
        Some('G') => 30,
        Some('T') => 40,
        Some('P') => 50,
        _ => return (text, 10, 0),
    };
    (plain.get(..plain.len().saturating_sub(1)).unwrap_or_default(), 10, shift)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::parse_size;

    #[test]
    fn sizes_as_people_write_them() {
        let table = [
            ("0", 0),
            ("4096", 4096),
            ("0x10", 16),
            ("0XfF", 255),
            ("4K", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("2M", 2 << 20),
            ("42G", 42 << 30),
            ("1T", 1 << 40),
            ("1_000", 1000),
            (" 7 ", 7),
            ("0xffffffffffffffff", u64::MAX),
        ];
        for (text, want) in table {
            assert_eq!(parse_size(text).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn what_is_no_size_says_so() {
        for text in ["", "K", "0x", "-1", "1.5G", "4KB", "12Q", "0x10K", "_1", "é", "+5"] {
            let error = parse_size(text).unwrap_err().to_string();
            assert!(error.contains("is not a number of bytes"), "{text}: {error}");
        }
        for text in ["18446744073709551616", "99999999999T"] {
            assert!(parse_size(text).unwrap_err().to_string().contains("too large"), "{text}");
        }
    }
}
