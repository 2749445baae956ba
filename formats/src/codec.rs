//! Compressed units that several formats share: deflate, zlib and Zstandard, each with the good prefix of a
//! damaged unit.

use crate::layer::Trust;
use crate::num::narrow;
use flate2::{Decompress, FlushDecompress, Status};
use libdeflater::Decompressor;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

/// A unit that did not fill its output: how many bytes at its start decoded.
///
/// Deflate carries no checksum of its own, so the prefix of a *corrupt* unit is what came out before the first
/// contradiction. [`crate::read()`] never calls it sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut(
    /// Bytes.
    pub usize,
);

/// Raw deflate (RFC 1951). `packed` may go on behind the end of the stream. A stream that would go on behind the
/// end of `out` fills it and is [`Trust::Doubtful`]: a unit is exactly as long as its format says.
pub fn inflate(packed: &[u8], out: &mut [u8]) -> Result<Trust, Cut> {
    match Decompressor::new().deflate_decompress(packed, out) {
        Ok(len) => whole(len, out.len(), Trust::Sound),
        Err(_) => inflate_prefix(packed, out, false),
    }
}

/// zlib (RFC 1950), with the terms of [`inflate`]. Its Adler-32 is checked: a unit that decodes to its full length
/// but does not match it is [`Trust::Doubtful`].
pub fn inflate_zlib(packed: &[u8], out: &mut [u8]) -> Result<Trust, Cut> {
    match Decompressor::new().zlib_decompress(packed, out) {
        Ok(len) => whole(len, out.len(), Trust::Sound),
        Err(_) => inflate_prefix(packed, out, true),
    }
}

/// libdeflate is all or nothing; zlib-rs tells what came out before the damage.
fn inflate_prefix(packed: &[u8], out: &mut [u8], zlib_header: bool) -> Result<Trust, Cut> {
    let mut stream = Decompress::new(zlib_header);
    let mut good = 0;
    loop {
        let input = packed.get(narrow(stream.total_in())..).unwrap_or_default();
        let rest = out.get_mut(good..).unwrap_or_default();
        let before = (stream.total_in(), stream.total_out());
        let status = stream.decompress(input, rest, FlushDecompress::None);
        good = narrow(stream.total_out()).min(out.len());
        let stuck = before == (stream.total_in(), stream.total_out());
        if stuck || good == out.len() || !matches!(status, Ok(Status::Ok)) {
            return whole(good, out.len(), Trust::Doubtful);
        }
    }
}

/// Decodes Zstandard, and keeps the contexts that it does that with: to make one asks the processor what it can do,
/// which inside a virtual machine takes as long as to decode several KiB.
#[derive(Default)]
pub struct Zstd(Mutex<Vec<Decoder<'static>>>);

impl fmt::Debug for Zstd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Zstd")
    }
}

impl Zstd {
    /// The first Zstandard frame (RFC 8878) in `packed`, which may go on behind it.
    pub fn decode(&self, packed: &[u8], out: &mut [u8]) -> Result<Trust, Cut> {
        // The decoder keeps to itself what a failing call had decoded. Damaged units are fed again in steps smaller
        // than any block that is worth compressing, so that only the damaged block is lost.
        const STEP: usize = 256;
        let kept = self.lock().pop().map_or_else(Decoder::new, Ok);
        let Ok(mut decoder) = kept else { return Err(Cut(0)) };
        let done = match unzstd_in_steps(&mut decoder, packed, out, packed.len().max(1)) {
            Err(_) => unzstd_in_steps(&mut decoder, packed, out, STEP),
            whole => whole,
        };
        // As many as there are threads, at most.
        self.lock().push(decoder);
        done
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Decoder<'static>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unzstd_in_steps(decoder: &mut Decoder<'static>, packed: &[u8], out: &mut [u8], step: usize) -> Result<Trust, Cut> {
    let len = out.len();
    if decoder.reinit().is_err() {
        return Err(Cut(0));
    }
    let mut output = OutBuffer::around(out);
    for piece in packed.chunks(step) {
        let mut input = InBuffer::around(piece);
        while input.pos() < piece.len() {
            let before = (input.pos(), output.pos());
            let ended = decoder.run(&mut input, &mut output);
            if output.pos() == len {
                return Ok(Trust::Sound);
            }
            if !matches!(ended, Ok(1..)) || before == (input.pos(), output.pos()) {
                return Err(Cut(output.pos()));
            }
        }
    }
    Err(Cut(output.pos()))
}

fn whole(good: usize, len: usize, trust: Trust) -> Result<Trust, Cut> {
    if good >= len { Ok(trust) } else { Err(Cut(good)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]
    use super::*;
    use flate2::{Compression, write::DeflateEncoder};
    use std::io::Write;

    fn text() -> Vec<u8> {
        let mut x = 88_172_645_463_325_252_u64;
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            b'a' + (x >> 40) as u8 % 11
        };
        (0..700_000).map(|_| next()).collect()
    }

    fn deflate(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn whole_units_ignore_what_follows() {
        let plain = text();
        for (mut packed, decode) in [
            (deflate(&plain), inflate as fn(&[u8], &mut [u8]) -> _),
            (zstd::encode_all(&*plain, 3).unwrap(), |packed, out| Zstd::default().decode(packed, out)),
        ] {
            packed.extend([0xa5; 700]);
            let mut out = vec![0; plain.len()];
            assert_eq!(decode(&packed, &mut out), Ok(Trust::Sound));
            assert!(out == plain);
        }
    }

    #[test]
    fn a_cut_unit_gives_its_prefix() {
        let plain = text();
        for (packed, decode) in [
            (deflate(&plain), inflate as fn(&[u8], &mut [u8]) -> _),
            (zstd::encode_all(&*plain, 3).unwrap(), |packed, out| Zstd::default().decode(packed, out)),
        ] {
            let mut out = vec![0; plain.len()];
            let Err(Cut(good)) = decode(&packed[..packed.len() * 3 / 4], &mut out) else { unreachable!("it was cut") };
            assert!(good > plain.len() / 3 && good < plain.len(), "{good}");
            assert!(out[..good] == plain[..good]);
            assert_eq!(decode(&[], &mut out), Err(Cut(0)));
        }
    }

    #[test]
    fn a_unit_longer_than_its_output_is_doubtful_and_stops() {
        let packed = deflate(&vec![0; 64 << 20]);
        let mut out = vec![1; 4096];
        assert_eq!(inflate(&packed, &mut out), Ok(Trust::Doubtful));
        assert!(out.iter().all(|byte| *byte == 0));
        let short = deflate(b"abc");
        assert_eq!(inflate(&short, &mut out), Err(Cut(3)));
    }
}
