//! Long-lived memory for weights and KV: one zeroed mapping, huge pages where the
//! system has them. Streaming 22 MB through 4 KiB pages costs a page walk per 64
//! cache lines, and hardware prefetch stops at each page's end.
#![forbid(unsafe_code)]

use memmap2::MmapMut;

/// Alignment of everything handed out, in bytes: a cache line and an AVX-512 vector.
pub(crate) const ALIGNMENT_BYTES: usize = 64;

/// A mapping that [`Arena::take`] hands out piece by piece.
pub(crate) struct Arena {
    map: MmapMut,
    used_bytes: usize,
}

/// A piece of an arena, in `f32` words from its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    start: usize,
    words: usize,
}

impl Arena {
    /// Zeroed memory for pieces of at most `bytes` in all, each counted by [`padded_bytes`].
    pub(crate) fn new(bytes: usize) -> std::io::Result<Arena> {
        let map = MmapMut::map_anon(bytes.max(ALIGNMENT_BYTES))?;
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%error, "no huge pages for weights and KV");
        }
        Ok(Arena { map, used_bytes: 0 })
    }

    /// The next `words` words, zeroed.
    pub(crate) fn take(&mut self, words: usize) -> Piece {
        let start = self.used_bytes / 4;
        self.used_bytes += padded_bytes(words);
        assert!(self.used_bytes <= self.map.len(), "the arena was measured for all its pieces");
        Piece { start, words }
    }

    /// Size in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.map.len()
    }

    /// The words of a piece.
    pub(crate) fn words(&self, piece: Piece) -> &[f32] {
        &bytemuck::cast_slice(&self.map[..])[piece.start..piece.start + piece.words]
    }

    /// The words of a piece, to write.
    pub(crate) fn words_mut(&mut self, piece: Piece) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.map[..])[piece.start..piece.start + piece.words]
    }
}

/// Bytes that a piece of `words` words takes in an arena.
pub(crate) fn padded_bytes(words: usize) -> usize {
    (words * 4).next_multiple_of(ALIGNMENT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_zeroed_and_disjoint() {
        let mut arena = Arena::new(padded_bytes(3) + padded_bytes(20)).unwrap();
        let (first, second) = (arena.take(3), arena.take(20));
        arena.words_mut(first).fill(1.0);
        assert_eq!(arena.words(second), [0.0; 20]);
        assert_eq!(arena.words(second).as_ptr() as usize % ALIGNMENT_BYTES, 0);
    }

    #[test]
    #[should_panic(expected = "measured")]
    fn an_arena_never_hands_out_more_than_it_has() {
        let mut arena = Arena::new(padded_bytes(16)).unwrap();
        arena.take(16);
        arena.take(4096);
    }
}
