//! Standard output without the standard library's buffer.

use std::io::{self, Write};

/// Writes straight to standard output. [`io::Stdout`] searches all that passes through it for line ends, which costs
/// as much as reading an image does.
#[derive(Clone, Copy, Debug)]
pub struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(rustix::stdio::stdout(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
