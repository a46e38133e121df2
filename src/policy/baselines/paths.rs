//! What the baselines of trees have in common: path probabilities, and a beam of fixed width.
//!
//! A path's probability is the product of the draft probabilities along it, raw, as the originals
//! have it. They take a node's children by probability. Here these are the drafter's choice under the
//! request's noise and the runner-up, and the runner-up's own probability follows from the margin
//! between the two likeliest tokens: exactly at temperature 0, where these are the two candidates.

use std::ops::Range;

use crate::protocol::{DraftSet, DraftedRow, OpenDraft, Proposal};

/// The tree baselines' part of [`Scratch`](crate::policy::Scratch).
#[derive(Debug, Default)]
pub struct PathBuffers {
    /// Path probabilities of all rows' drafts.
    paths: Vec<f32>,
    /// Where each row's begin.
    starts: Vec<usize>,
    /// All drafts, by row and then by falling path probability.
    pub(super) order: Vec<Candidate>,
    /// What each row needs, and where its drafts are in `order`; of `adaserve`.
    pub(super) needs: Vec<(f64, Range<usize>)>,
    beam: Vec<(u32, f32)>,
}

/// A draft that may be verified.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) row: u32,
    draft: u32,
    /// Probability of its path.
    pub(super) path: f32,
}

impl Candidate {
    /// Takes it; true if it was not taken before.
    pub(super) fn take(self, chosen: &mut [DraftSet]) -> bool {
        let set = &mut chosen[self.row as usize];
        let is_new = !set.contains(self.draft as usize);
        set.insert(self.draft as usize);
        is_new
    }

    /// Likelier paths first; of equals the first, so that no draft comes before what it follows.
    pub(super) fn by_path(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
        b.path.total_cmp(&a.path).then((a.row, a.draft).cmp(&(b.row, b.draft)))
    }
}

/// Draft probability of the candidate of this rank.
fn probability(proposal: &Proposal, rank: u32) -> f32 {
    let Proposal { probability, margin, .. } = *proposal;
    match rank {
        0 => probability,
        // a choice below the margin is not the likeliest token, which then is at least as likely as that
        _ if probability < margin => margin,
        _ => probability - margin,
    }
}

impl PathBuffers {
    /// Multiplies up the paths of these rows.
    fn measure(&mut self, rows: &[DraftedRow]) {
        self.paths.clear();
        self.starts.clear();
        for row in rows {
            let start = self.paths.len();
            self.starts.push(start);
            for (draft, proposal) in row.proposals.iter().enumerate().take(DraftSet::DRAFTS_MAX) {
                let place = row.place(draft);
                let before = place.parent_draft().map_or(1.0, |parent| self.paths[start + parent]);
                self.paths.push(before * probability(proposal, place.rank));
            }
        }
    }

    fn path(&self, row: u32, draft: u32) -> f32 {
        self.paths[self.starts[row as usize] + draft as usize]
    }

    /// Fills [`order`](Self::order) with the drafts of these rows.
    pub(super) fn rank(&mut self, rows: &[DraftedRow]) {
        self.measure(rows);
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        for (row, drafted) in (0..).zip(rows) {
            let from = order.len();
            let drafts = 0..drafted.proposals.len().min(DraftSet::DRAFTS_MAX) as u32;
            order.extend(drafts.map(|draft| Candidate { row, draft, path: self.path(row, draft) }));
            order[from..].sort_unstable_by(Candidate::by_path);
        }
        self.order = order;
    }

    /// [`expand`](crate::policy::Policy::expand) by a beam: of each row's open drafts, which stand at one
    /// depth, the `width` likeliest are fed, until the tree is `levels` deep.
    pub(super) fn widen(
        &mut self,
        rows: &[DraftedRow],
        open: &[OpenDraft],
        (width, levels): (usize, u32),
        keep: &mut Vec<u32>,
    ) {
        self.measure(rows);
        let mut beam = std::mem::take(&mut self.beam);
        let mut index = 0;
        for of_row in open.chunk_by(|a, b| a.row == b.row) {
            beam.clear();
            for open in of_row {
                let depth = rows[open.row as usize].place(open.draft as usize).depth;
                if depth + 1 < levels {
                    beam.push((index, self.path(open.row, open.draft)));
                }
                index += 1;
            }
            beam.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            beam.truncate(width);
            let from = keep.len();
            keep.extend(beam.iter().map(|(index, _)| index));
            keep[from..].sort_unstable();
        }
        self.beam = beam;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::protocol::DraftPlace;

    /// A row's tree of `(parent, depth, rank, probability)`; the likeliest token beats the second by 0.4.
    pub(crate) fn tree(decoding: u32, nodes: &[(u32, u32, u32, f32)]) -> DraftedRow {
        let proposal = |&(.., probability): &(u32, u32, u32, f32)| Proposal {
            probability,
            margin: 0.4,
            finite: true,
            ..Proposal::default()
        };
        DraftedRow {
            decoding,
            proposals: nodes.iter().map(proposal).collect(),
            places: nodes
                .iter()
                .map(|&(parent, depth, rank, _)| DraftPlace { parent, depth, rank })
                .collect(),
        }
    }

    /// 0.6 and 0.2, behind the first 0.5 and 0.1.
    fn small(decoding: u32) -> DraftedRow {
        tree(decoding, &[(0, 0, 0, 0.6), (0, 0, 1, 0.6), (1, 1, 0, 0.5), (1, 1, 1, 0.5)])
    }

    #[test]
    fn paths_multiply_and_a_runner_up_has_its_own_probability() {
        let mut buffers = PathBuffers::default();
        buffers.measure(&[small(0), small(1)]);
        let expected = [0.6, 0.2, 0.3, 0.06];
        for (draft, expected) in (0..).zip(expected) {
            for row in [0, 1] {
                assert!((buffers.path(row, draft) - expected).abs() < 1e-6, "{row} {draft}");
            }
        }
        let unlikely = Proposal { probability: 0.1, margin: 0.4, ..Proposal::default() };
        assert_eq!((probability(&unlikely, 0), probability(&unlikely, 1)), (0.1, 0.4));
    }

    #[test]
    fn drafts_are_ranked_by_path_within_their_row() {
        let mut buffers = PathBuffers::default();
        buffers.rank(&[small(0), tree(1, &[(0, 0, 0, 0.9), (1, 1, 0, 1.0), (2, 2, 0, 1.0)])]);
        let order: Vec<(u32, u32)> = buffers.order.iter().map(|one| (one.row, one.draft)).collect();
        assert_eq!(order, [(0, 0), (0, 2), (0, 1), (0, 3), (1, 0), (1, 1), (1, 2)], "equals: the first");
    }

    #[test]
    fn the_beam_takes_the_likeliest_of_each_row_down_to_its_last_level() {
        let rows = [small(0), small(1)];
        let open: Vec<OpenDraft> =
            [(0, 2), (0, 3), (1, 0), (1, 1)].map(|(row, draft)| OpenDraft { row, draft }).to_vec();
        let kept = |width, levels| {
            let mut keep = Vec::new();
            PathBuffers::default().widen(&rows, &open, (width, levels), &mut keep);
            keep
        };
        assert_eq!(kept(2, 3), [0, 1, 2, 3]);
        assert_eq!(kept(1, 3), [0, 2]);
        assert_eq!(kept(2, 2), [2, 3], "those at depth 1 would have children at depth 2");
        assert!(kept(2, 1).is_empty());
    }
}
