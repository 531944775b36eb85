//! Memory aligned for `O_DIRECT`, in safe code: a larger vector and an aligned window into it.

/// Alignment of every buffer, bytes. open(2): direct I/O needs at most the logical block size; 4096 covers all disks.
pub const ALIGN: usize = 4096;

/// A zeroed buffer whose first byte is aligned to [`ALIGN`].
#[derive(Debug)]
pub struct AlignedBuf {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// A buffer of `len` bytes, all zero.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let memory = vec![0_u8; len + ALIGN];
        // The vector never grows, so its memory stays where it is.
        let start = (ALIGN - memory.as_ptr().addr() % ALIGN) % ALIGN;
        Self { memory, start, len }
    }

    /// The aligned bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// The aligned bytes, to be changed.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_aligned_and_of_full_length() {
        for len in [1, 512, 4095, 4096, 65536] {
            let mut buf = AlignedBuf::new(len);
            assert_eq!(buf.bytes().as_ptr().addr() % ALIGN, 0);
            assert_eq!(buf.bytes_mut().len(), len);
        }
    }
}
