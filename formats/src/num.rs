//! The two conversions that code on 64-bit disks and slices needs, each total.

/// A length or index in memory as a disk offset.
#[must_use]
pub fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// A disk length as a length in memory; what no memory can hold becomes `usize::MAX`, which no slice has.
#[must_use]
pub fn narrow(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// `n` rounded up to a multiple of `unit`; `u64::MAX` where that does not fit, `n` where `unit` is 0.
#[must_use]
pub fn round_up(n: u64, unit: u64) -> u64 {
    if unit == 0 { n } else { n.div_ceil(unit).saturating_mul(unit) }
}
