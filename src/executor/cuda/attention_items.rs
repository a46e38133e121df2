//! Cuts runs of query rows into items: tiles of queries against chunks of positions.
#![forbid(unsafe_code)]

use super::attention_chunks::{CHUNK_CLASSES, Cut, chunks_of};
use super::attention_room::AttentionRoom;
use super::ffi::kernels::{
    ATTENTION_PREFILL_TILE_ROWS, ATTENTION_TILE_ROWS_LARGE, ATTENTION_TILE_ROWS_SMALL, AttentionItem,
    AttentionSegment,
};

/// A run of queries for the decode kernel.
#[derive(Clone, Copy, Debug)]
pub struct MaskedRun {
    /// The run.
    pub segment: AttentionSegment,
    /// One past the last position that it sees.
    end: usize,
    cut: Cut,
    /// Chunks of `cut`.
    chunks: usize,
    /// Where its partial results start; set when it is cut.
    partial: usize,
    /// Whether its positions from the segment's start on are looked up in a mask.
    gathered: bool,
}

impl MaskedRun {
    /// A run that sees positions up to `end`, cut so.
    pub fn new(segment: AttentionSegment, cut: Cut, end: usize) -> MaskedRun {
        MaskedRun { segment, end, cut, chunks: cut.count(), partial: 0, gathered: false }
    }

    /// The same, gathered: what its queries see behind the segment's start is not in the slots of its
    /// positions.
    pub fn gathered(self) -> MaskedRun {
        MaskedRun { gathered: true, ..self }
    }

    /// Partial results that it makes.
    pub fn partial_rows(&self, room: &AttentionRoom) -> usize {
        room.partial_rows_of(self.segment.queries as usize, self.chunks)
    }

    /// Query rows times heads of a group.
    fn packed(&self, room: &AttentionRoom) -> usize {
        self.segment.queries as usize * room.group()
    }
}

/// Items of a causal run for the prefill kernel, the last tiles first: they see most positions.
pub fn causal_items(
    room: &AttentionRoom,
    segment: AttentionSegment,
) -> impl Iterator<Item = AttentionItem> + use<> {
    let tiles = (segment.queries as usize * room.group()).div_ceil(ATTENTION_PREFILL_TILE_ROWS as usize);
    (0..tiles as i32).rev().map(move |tile| AttentionItem {
        segment,
        tile,
        kv_begin: 0,
        kv_end: segment.start + segment.queries,
        chunk: 0,
        chunks: 1,
        partial: 0,
        gathered: 0,
        unused: 0,
    })
}

/// Whether large tiles pay: a small one does not hold every run's rows, and there is more
/// work than runs at once.
pub fn pays_large(room: &AttentionRoom, runs: &[MaskedRun]) -> bool {
    let small = ATTENTION_TILE_ROWS_SMALL as usize;
    let (mut most, mut items) = (0, 0);
    for run in runs {
        let packed = run.packed(room);
        most = most.max(packed);
        items += packed.div_ceil(small) * run.chunks * room.kv_heads;
    }
    most > small && items > room.small_items_max
}

/// Cuts runs with tiles of one size.
pub struct Cutter<'a> {
    room: &'a AttentionRoom,
    tile_rows: usize,
}

impl Cutter<'_> {
    /// For large tiles or small ones.
    pub fn new(room: &AttentionRoom, large: bool) -> Cutter<'_> {
        let tile_rows = if large { ATTENTION_TILE_ROWS_LARGE } else { ATTENTION_TILE_ROWS_SMALL };
        Cutter { room, tile_rows: tile_rows as usize }
    }

    /// Appends the items of all runs, those with the longest chunks first, so that the
    /// persistent grid ends evenly; and one item of each tile whose chunks are merged.
    ///
    /// # Panics
    /// When there are more partial results than there is room for.
    pub fn cut(
        &self,
        runs: &mut [MaskedRun],
        items: &mut Vec<AttentionItem>,
        merges: &mut Vec<AttentionItem>,
    ) {
        self.share_room(runs);
        items.reserve(runs.iter().map(|run| self.tiles(run) * run.chunks).sum());
        for class in (0..CHUNK_CLASSES).rev() {
            runs.iter().for_each(|run| self.whole_chunks(run, class, items));
        }
        runs.iter().filter(|run| run.cut.rest > 0).for_each(|run| self.rests(run, items));
        let length = chunks_of(self.room.kv_heads)[0].1;
        for run in runs.iter().filter(|run| run.chunks > 1) {
            merges.extend((0..self.tiles(run)).map(|tile| self.item(run, tile, 0, (0, length))));
        }
    }

    /// Gives each run its part of the room for partial results.
    fn share_room(&self, runs: &mut [MaskedRun]) {
        let mut next = 0;
        for run in runs {
            run.partial = next;
            next += run.partial_rows(self.room);
        }
        assert!(next <= self.room.partial_rows, "more partial results than planned");
    }

    fn tiles(&self, run: &MaskedRun) -> usize {
        run.packed(self.room).div_ceil(self.tile_rows)
    }

    fn whole_chunks(&self, run: &MaskedRun, class: usize, items: &mut Vec<AttentionItem>) {
        let (from, length) = chunks_of(self.room.kv_heads)[class];
        let before: u32 = run.cut.whole[..class].iter().sum();
        let whole = run.cut.whole[class];
        if whole == 0 {
            return;
        }
        for tile in 0..self.tiles(run) {
            items.extend((0..whole).map(|number| {
                let begin = from + number * length;
                self.item(run, tile, before + number, (begin, begin + length))
            }));
        }
    }

    /// The items of the last chunk, which is not whole.
    fn rests(&self, run: &MaskedRun, items: &mut Vec<AttentionItem>) {
        let end = run.end as u32;
        let (last, positions) = (run.chunks as u32 - 1, (end - run.cut.rest, end));
        items.extend((0..self.tiles(run)).map(|tile| self.item(run, tile, last, positions)));
    }

    fn item(&self, run: &MaskedRun, tile: usize, chunk: u32, (begin, end): (u32, u32)) -> AttentionItem {
        // all tiles before have as many rows as a tile holds
        let rows_before = tile * self.tile_rows * self.room.kv_heads * run.chunks;
        AttentionItem {
            segment: run.segment,
            tile: tile as i32,
            kv_begin: begin as i32,
            kv_end: end as i32,
            chunk: chunk as i32,
            chunks: run.chunks as i32,
            partial: (run.partial + if run.chunks > 1 { rows_before } else { 0 }) as i32,
            gathered: i32::from(run.gathered),
            unused: 0,
        }
    }
}
