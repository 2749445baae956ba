//! How things are said: names that are safe on a terminal, sizes, times.

use jiff::Timestamp;
use std::fmt::Write;

/// A name's bytes for people: what would move a cursor, colour a terminal, reverse a line or is no UTF-8 is
/// escaped.
#[must_use]
pub fn printable(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            // Marks and overrides of direction can make a name read as another one.
            let hidden =
                matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
            if c.is_control() || hidden {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            // Writing to a string can't fail.
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// `1.5 GiB`; below 1 KiB in bytes.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut whole, mut rest, mut unit) = (bytes, 0, None);
    for name in UNITS {
        if whole < 1024 {
            break;
        }
        (whole, rest, unit) = (whole / 1024, whole % 1024, Some(name));
    }
    match unit {
        None => format!("{bytes} B"),
        Some(unit) if rest * 10 / 1024 == 0 || whole >= 100 => format!("{whole} {unit}"),
        Some(unit) => format!("{whole}.{} {unit}", rest * 10 / 1024),
    }
}

/// A time in nanoseconds since 1970, as RFC 3339 in UTC; `None` for years that it can't say.
#[must_use]
pub fn time(nanos: i128) -> Option<String> {
    Timestamp::from_nanosecond(nanos).ok().map(|time| time.to_string())
}

/// A time for a listing, to the second, or dashes of the same width.
#[must_use]
pub fn short_time(nanos: Option<i128>) -> String {
    let time = nanos.and_then(|nanos| Timestamp::from_nanosecond(nanos).ok());
    time.map_or_else(|| "-".repeat(19), |time| time.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_play_with_the_terminal() {
        assert_eq!(printable(b"plain \xc3\xa9.vmdk"), "plain \u{e9}.vmdk");
        assert_eq!(printable(b"\x1b[31m\n\xff"), "\\u{1b}[31m\\n\\xff");
        assert_eq!(printable("a\u{202e}b".as_bytes()), "a\\u{202e}b");
    }

    #[test]
    fn sizes_are_short_and_never_rounded_up() {
        let table = [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (42 << 40, "42 TiB")];
        for (bytes, text) in table {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size((1 << 30) - 1), "1023 MiB");
    }

    #[test]
    fn times_outside_of_any_calendar_are_not_told() {
        assert_eq!(time(0).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(time(i128::MAX), None);
        assert_eq!(short_time(None).len(), short_time(Some(0)).len());
    }
}
