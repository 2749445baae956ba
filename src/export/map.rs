//! The ddrescue mapfile beside an output.

use super::losses::Losses;
use crate::mapfile::{Status, write_map};
use std::io::{self, Write};

/// Writes a map of all of `0..len`: `+` is there, `-` is lost, `?` is what no longer fits the list of losses.
pub(crate) fn write(out: &mut impl Write, len: u64, losses: &Losses) -> io::Result<()> {
    let notes: Vec<String> = by_reason(losses)
        .into_iter()
        .map(|(why, count, bytes)| format!("lost: {bytes} bytes in {count} ranges: {why}"))
        .collect();
    let gaps = losses.gaps.iter().map(|gap| (gap.range.clone(), Status::Bad));
    let unknown = losses.cut.map(|cut| (cut..len, Status::Untried));
    write_map(out, len, &notes, &gaps.chain(unknown).collect::<Vec<_>>())
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
