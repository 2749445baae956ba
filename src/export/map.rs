//! The ddrescue mapfile beside an output.

use super::losses::Losses;
use std::io::{self, Write};

/// Writes a map of all of `0..len`: `+` is there, `-` is lost, `?` is what no longer fits the list of losses.
pub(crate) fn write(out: &mut impl Write, len: u64, losses: &Losses) -> io::Result<()> {
    writeln!(out, "# Mapfile. Created by vdrecover {}", env!("CARGO_PKG_VERSION"))?;
    for (why, count, bytes) in by_reason(losses) {
        writeln!(out, "# lost: {bytes} bytes in {count} ranges: {why}")?;
    }
    writeln!(out, "# current_pos  current_status  current_pass")?;
    writeln!(out, "0x{:08X}     +               1", 0)?;
    writeln!(out, "#      pos        size  status")?;
    let mut at = 0;
    let mut line = |start: u64, end: u64, status: char| match end.checked_sub(start) {
        None | Some(0) => Ok(()),
        Some(size) => writeln!(out, "0x{start:08X}  0x{size:08X}  {status}"),
    };
    let mut gaps = losses.gaps.iter().peekable();
    while let Some(gap) = gaps.next() {
        let mut end = gap.range.end;
        // Neighbours differ in their reason, which the map does not tell.
        while let Some(next) = gaps.next_if(|next| next.range.start == end) {
            end = next.range.end;
        }
        line(at, gap.range.start, '+')?;
        line(gap.range.start, end, '-')?;
        at = end;
    }
    let known = losses.cut.unwrap_or(len);
    line(at, known, '+')?;
    line(known, len, '?')
}

/// Sums of the gaps that are listed, in a fixed order.
fn by_reason(losses: &Losses) -> Vec<(&'static str, u64, u64)> {
    let mut sums = std::collections::BTreeMap::new();
    for gap in &losses.gaps {
        let (count, bytes) = sums.entry(gap.loss.why.word()).or_insert((0_u64, 0_u64));
        *count += 1;
        *bytes += gap.range.end - gap.range.start;
    }
    sums.into_iter().map(|(why, (count, bytes))| (why, count, bytes)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::export::losses::KEPT;
    use std::ops::Range;
    use vdrecover_formats::{Gap, Loss, Why};

    fn text(len: u64, gaps: &[(Range<u64>, Why)]) -> String {
        let mut losses = Losses::default();
        for (range, why) in gaps {
            losses.push(&Gap { range: range.clone(), loss: Loss { why: *why, at: 0 } });
        }
        let mut out = Vec::new();
        write(&mut out, len, &losses).unwrap();
        let text = String::from_utf8(out).unwrap();
        text.lines().filter(|line| !line.starts_with('#')).skip(1).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn lines_are_contiguous() {
        let gaps = [(0..512, Why::Absent), (512..1024, Why::Unreadable), (4096..8192, Why::Absent)];
        assert_eq!(
            text(8192, &gaps),
            "0x00000000  0x00000400  -\n0x00000400  0x00000C00  +\n0x00001000  0x00001000  -"
        );
        assert_eq!(text(10, &[]), "0x00000000  0x0000000A  +");
        assert_eq!(text(0, &[]), "");
    }

    #[test]
    fn what_is_not_listed_is_not_called_good() {
        let gaps: Vec<_> = (0..=KEPT as u64).map(|i| (i * 4..i * 4 + 1, Why::Absent)).collect();
        let text = text(1 << 30, &gaps);
        assert_eq!(text.lines().last(), Some("0x00400000  0x3FC00000  ?"));
    }
}
