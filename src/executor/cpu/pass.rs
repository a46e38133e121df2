//! The input of one forward pass: rows of all sequences, and how attention is cut into tiles.
#![forbid(unsafe_code)]

use std::ops::Range;

use crate::protocol::{BlockId, TokenId};

use super::kernels::{QUERIES_MAX, Query};

/// One input token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PassRow {
    /// The token.
    pub(crate) token: TokenId,
    /// Its absolute position, for the rotation.
    pub(crate) position: usize,
    /// Where its key and value go in its sequence.
    pub(crate) slot: usize,
    /// Index into [`Pass::sequences`].
    pub(crate) sequence: usize,
    /// Slots `0..prefix` are seen ...
    pub(crate) prefix: usize,
    /// ... and these of [`Pass::tails`].
    pub(crate) tail: Range<usize>,
    /// Whether logits are needed after it.
    pub(crate) wanted: bool,
}

/// Rows of a forward pass; the rows of a sequence stand together, in the order of their slots.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pass<'a> {
    /// Block tables.
    pub(crate) sequences: Vec<&'a [BlockId]>,
    /// All rows.
    pub(crate) rows: Vec<PassRow>,
    /// Slots of tree ancestors.
    pub(crate) tails: Vec<u32>,
}

impl<'a> Pass<'a> {
    /// Adds a sequence of which each token sees all before it. Logits are wanted after the
    /// last `wanted` tokens.
    pub(crate) fn push_chain(
        &mut self,
        blocks: &'a [BlockId],
        tokens: &[TokenId],
        start: u32,
        wanted: usize,
    ) {
        let sequence = self.sequences.len();
        self.sequences.push(blocks);
        for (index, &token) in tokens.iter().enumerate() {
            let slot = start as usize + index;
            let wanted = index + wanted >= tokens.len();
            self.rows.push(PassRow {
                token,
                position: slot,
                slot,
                sequence,
                prefix: slot + 1,
                tail: 0..0,
                wanted,
            });
        }
    }

    /// Adds a sequence whose last tokens are a tree with these parents
    /// ([`VerifyRow::tree`](crate::protocol::VerifyRow::tree)). Logits are wanted after the
    /// last committed token and every node.
    pub(crate) fn push_tree(
        &mut self,
        blocks: &'a [BlockId],
        tokens: &[TokenId],
        start: u32,
        parents: &[u32],
    ) {
        let committed = tokens.len() - parents.len();
        self.push_chain(blocks, &tokens[..committed], start, 1);
        let sequence = self.sequences.len() - 1;
        let prefix = start as usize + committed;
        let first_node = self.rows.len();
        for (node, &parent) in parents.iter().enumerate() {
            let tail_start = self.tails.len();
            if parent > 0 {
                let ancestors = self.rows[first_node + parent as usize - 1].tail.clone();
                self.tails.extend_from_within(ancestors);
            }
            let slot = prefix + node;
            self.tails.push(slot as u32);
            let tail = tail_start..self.tails.len();
            let position = prefix + tail.len() - 1;
            let token = tokens[committed + node];
            self.rows.push(PassRow { token, position, slot, sequence, prefix, tail, wanted: true });
        }
    }

    /// Adds a token that sees the first `prefix` slots and those of `tail`, of which the last is its own.
    pub(crate) fn push_node(&mut self, blocks: &'a [BlockId], token: TokenId, prefix: usize, tail: &[u32]) {
        let sequence = self.sequences.len();
        self.sequences.push(blocks);
        let first = self.tails.len();
        self.tails.extend_from_slice(tail);
        let slot = tail.last().map_or(prefix, |&slot| slot as usize);
        let (position, tail) = (prefix + tail.len() - 1, first..self.tails.len());
        self.rows.push(PassRow { token, position, slot, sequence, prefix, tail, wanted: true });
    }

    /// Adds tokens that follow `context` others: each sees the context and all of the added tokens.
    /// Their keys and values go to blocks of their own, which follow those of the context in `blocks`.
    pub(crate) fn push_block(
        &mut self,
        blocks: &'a [BlockId],
        tokens: &[TokenId],
        context: usize,
        block_tokens: usize,
    ) {
        let sequence = self.sequences.len();
        self.sequences.push(blocks);
        let first_slot = context.next_multiple_of(block_tokens);
        let tail = self.tails.len()..self.tails.len() + tokens.len();
        self.tails.extend((first_slot..first_slot + tokens.len()).map(|slot| slot as u32));
        self.rows.extend(tokens.iter().enumerate().map(|(index, &token)| PassRow {
            token,
            position: context + index,
            slot: first_slot + index,
            sequence,
            prefix: context,
            tail: tail.clone(),
            wanted: true,
        }));
    }
}

/// Pieces that a thread's share of the attention is cut into, where there are enough tiles.
const THREAD_PIECES: usize = 4;

/// Queries that are computed together: some heads of some neighbouring rows over one KV head.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tile {
    /// Index of the run's first row among the active ones.
    first: usize,
    /// First query of the tile in its run, counting heads of the group within rows.
    query: usize,
    /// Queries.
    count: usize,
    /// The KV head.
    pub(crate) kv_head: usize,
}

/// Attention of some rows, cut into tiles and these gathered into pieces of work.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tiles {
    /// Indices into [`Pass::rows`]: the rows whose attention is computed.
    active: Vec<usize>,
    tiles: Vec<Tile>,
    /// First tile of each piece, and the end.
    bounds: Vec<usize>,
    /// Query heads for one KV head.
    group: usize,
}

impl Tiles {
    /// Tiles of the rows `active`, in pieces of about equal work, some for each thread. Depends
    /// on nothing that could change a result: a query's sums are its own.
    pub(crate) fn new(
        pass: &Pass<'_>,
        active: Vec<usize>,
        heads: usize,
        kv_heads: usize,
        threads: usize,
    ) -> Tiles {
        let group = heads / kv_heads;
        let tile_queries = (active.len() * heads).div_ceil(threads).min(QUERIES_MAX);
        let mut tiles = Vec::new();
        let mut first = 0;
        for run in active.chunk_by(|&a, &b| pass.rows[a].sequence == pass.rows[b].sequence) {
            let queries = run.len() * group;
            let parts = queries.div_ceil(tile_queries);
            for kv_head in 0..kv_heads {
                tiles.extend((0..parts).map(|part| {
                    let range = super::pool::share(queries, part, parts);
                    Tile { first, query: range.start, count: range.len(), kv_head }
                }));
            }
            first += run.len();
        }
        let mut made = Tiles { active, tiles, bounds: Vec::new(), group };
        made.bounds = made.equal_work(pass, threads * THREAD_PIECES);
        made
    }

    /// Rows whose attention is computed, as indices into the pass.
    pub(crate) fn active(&self) -> &[usize] {
        &self.active
    }

    /// How many pieces there are.
    pub(crate) fn pieces(&self) -> usize {
        self.bounds.len() - 1
    }

    /// The tiles of one piece; at least one.
    pub(crate) fn of(&self, piece: usize) -> &[Tile] {
        &self.tiles[self.bounds[piece]..self.bounds[piece + 1]]
    }

    /// The row of a tile's first query.
    pub(crate) fn row<'p>(&self, pass: &'p Pass<'_>, tile: &Tile) -> &'p PassRow {
        &pass.rows[self.active[tile.first + tile.query / self.group]]
    }

    /// Fills `queries` with a tile's; returns how many. `query(row, head)` and
    /// `out(index, head)` name their memory, `index` counting active rows.
    pub(crate) fn queries<'p>(
        &self,
        pass: &'p Pass<'_>,
        tile: &Tile,
        query: impl Fn(usize, usize) -> *const f32,
        out: impl Fn(usize, usize) -> *mut f32,
        queries: &mut Vec<Query<'p>>,
    ) {
        queries.clear();
        queries.extend((tile.query..tile.query + tile.count).map(|query_index| {
            let index = tile.first + query_index / self.group;
            let head = tile.kv_head * self.group + query_index % self.group;
            let row = &pass.rows[self.active[index]];
            let tail = &pass.tails[row.tail.clone()];
            Query { query: query(self.active[index], head), out: out(index, head), prefix: row.prefix, tail }
        }));
    }

    /// Cuts the tiles into at most `pieces` where the positions to attend to reach each one's part.
    fn equal_work(&self, pass: &Pass<'_>, pieces: usize) -> Vec<usize> {
        let work = |tile: &Tile| self.row(pass, tile).prefix * tile.count;
        let total: usize = self.tiles.iter().map(work).sum();
        let mut bounds = vec![0];
        let mut done = 0;
        for (index, tile) in self.tiles.iter().enumerate() {
            if index > 0 && done * pieces >= total * bounds.len() && bounds.len() < pieces {
                bounds.push(index);
            }
            done += work(tile);
        }
        if !self.tiles.is_empty() {
            bounds.push(self.tiles.len());
        }
        bounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_node_sees_the_committed_tokens_and_its_ancestors() {
        let blocks = [BlockId(0)];
        let mut pass = Pass::default();
        // Committed 10 at slots 4 and 5; drafts: a, b (children of the root), c under a, d under c.
        pass.push_tree(&blocks, &[10, 11, 1, 2, 3, 4], 4, &[0, 0, 1, 3]);
        let seen: Vec<Vec<u32>> =
            pass.rows[2..].iter().map(|row| pass.tails[row.tail.clone()].to_vec()).collect();
        assert_eq!(seen, [vec![6], vec![7], vec![6, 8], vec![6, 8, 9]]);
        let positions: Vec<usize> = pass.rows.iter().map(|row| row.position).collect();
        assert_eq!(positions, [4, 5, 6, 6, 7, 8]);
        assert_eq!(
            pass.rows.iter().map(|row| row.wanted).collect::<Vec<_>>(),
            [false, true, true, true, true, true]
        );
    }

    #[test]
    fn tiles_cover_every_query_once_for_any_number_of_threads() {
        let blocks = [0, 1, 2].map(BlockId);
        let mut pass = Pass::default();
        pass.push_chain(&blocks, &[1; 7], 0, 0);
        pass.push_chain(&blocks, &[1], 30, 1);
        pass.push_chain(&blocks, &[1, 2], 3, 1);
        for threads in 1..6 {
            let tiles = Tiles::new(&pass, (0..pass.rows.len()).collect(), 6, 2, threads);
            let mut outputs = Vec::new();
            let mut queries = Vec::new();
            for piece in 0..tiles.pieces() {
                assert!(!tiles.of(piece).is_empty());
                for tile in tiles.of(piece) {
                    let out = |index: usize, head: usize| (index * 6 + head) as *mut f32;
                    tiles.queries(&pass, tile, |_, _| std::ptr::null(), out, &mut queries);
                    outputs.extend(queries.iter().map(|query| query.out as usize));
                }
            }
            outputs.sort_unstable();
            assert_eq!(outputs, (0..60).collect::<Vec<_>>(), "{threads} threads");
        }
    }
}
