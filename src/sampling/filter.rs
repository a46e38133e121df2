//! Finding the tokens that top-k, top-p and min-p keep, in linear expected time.
//!
//! Few tokens usually matter, so the search first gathers those within a few nats of
//! the best and widens the window only if they do not suffice. Cuts are found by
//! partitioning; at most [`SORT_MAX`] tokens are ever sorted.

use super::distribution::{Filters, Ranked, total_mass, weight};
use super::scan::Scores;

/// Depth of the first window below the best score, in nats.
const FIRST_WINDOW: f32 = 6.0;
/// Growth factor of each further window.
const WINDOW_GROWTH: f32 = 1.5;
/// Beyond this depth the whole vocabulary is gathered: e^-32 is below the unit of mass.
const LAST_WINDOW: f32 = 32.0;
/// Tokens tested at once for lying outside of the window.
const TILE: usize = 64;
/// Sets of at most this size are sorted.
const SORT_MAX: usize = 32;

/// Writes the kept tokens to `kept`, in no particular order. Scores must be finite and
/// `max_score` their maximum.
pub(super) fn keep(scores: Scores, max_score: f32, filters: Filters, kept: &mut Vec<Ranked>) {
    // Top-p is relative to the mass of all tokens, or of those that top-k keeps.
    let mass_of_all = match (filters.top_k, filters.top_p) {
        (None, Some(_)) => Some(total_mass(scores, max_score)),
        _ => None,
    };
    gather_enough(scores, max_score, filters, mass_of_all, kept);
    if let Some(k) = filters.top_k {
        cut_count(kept, k);
    }
    if let Some(p) = filters.top_p {
        let mass = mass_of_all.unwrap_or_else(|| mass_of(kept, max_score));
        cut_mass(kept, max_score, target_mass(p, mass));
    }
    if let Some(least) = filters.min_score {
        kept.retain(|r| r.score() - max_score >= least);
    }
}

/// Total weight of a set of tokens.
pub(super) fn mass_of(tokens: &[Ranked], max_score: f32) -> u64 {
    tokens.iter().map(|r| u64::from(weight(r.score(), max_score))).sum()
}

/// The mass that top-p has to reach.
fn target_mass(p: f32, mass: u64) -> u64 {
    (f64::from(p) * mass as f64).ceil() as u64
}

/// Gathers a prefix of the ranking (unordered) that contains every filter's cut.
fn gather_enough(
    scores: Scores,
    max_score: f32,
    filters: Filters,
    mass_of_all: Option<u64>,
    out: &mut Vec<Ranked>,
) {
    let mass_wanted = filters.top_p.zip(mass_of_all).map_or(0, |(p, mass)| target_mass(p, mass));
    let count_wanted = filters.top_k.unwrap_or(1);
    let mut window = match (filters.top_k, filters.top_p, filters.min_score) {
        (None, None, Some(least)) => -least,
        _ => FIRST_WINDOW,
    };
    loop {
        gather(scores, max_score, -window, out);
        let enough = out.len() >= count_wanted && mass_of(out, max_score) >= mass_wanted;
        if enough || window == f32::INFINITY {
            return;
        }
        window = if window < LAST_WINDOW { WINDOW_GROWTH * window } else { f32::INFINITY };
    }
}

/// Gathers all tokens with `score - max_score >= least`.
fn gather(scores: Scores, max_score: f32, least: f32, out: &mut Vec<Ranked>) {
    out.clear();
    let inside = |logit: f32| logit * scores.scale - max_score >= least;
    for (t, tile) in scores.logits.chunks(TILE).enumerate() {
        if tile.iter().fold(0u32, |any, &logit| any | u32::from(inside(logit))) == 0 {
            continue;
        }
        for (i, &logit) in tile.iter().enumerate().filter(|(_, logit)| inside(**logit)) {
            out.push(Ranked::new(logit * scores.scale, (t * TILE + i) as u32));
        }
    }
}

/// Cuts to the first `k` of the ranking.
fn cut_count(tokens: &mut Vec<Ranked>, k: usize) {
    if k < tokens.len() {
        tokens.select_nth_unstable(k);
        tokens.truncate(k);
    }
}

/// Cuts to the shortest non-empty prefix of the ranking with at least `target` mass.
fn cut_mass(tokens: &mut Vec<Ranked>, max_score: f32, target: u64) {
    // The cut lies in from..to; tokens before `from` are kept and have mass `before`.
    let (mut from, mut to, mut before) = (0, tokens.len(), 0);
    while to - from > SORT_MAX {
        let middle = (to - from) / 2;
        tokens[from..to].select_nth_unstable(middle);
        let upper = mass_of(&tokens[from..from + middle], max_score);
        if before + upper >= target {
            to = from + middle;
        } else {
            before += upper;
            from += middle;
        }
    }
    tokens[from..to].sort_unstable();
    let mut kept = from;
    while kept < to && (before < target || kept == 0) {
        before += u64::from(weight(tokens[kept].score(), max_score));
        kept += 1;
    }
    tokens.truncate(kept);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::TokenId;
    use crate::sampling::noise::Noise;

    /// The definition: rank everything, then apply one cut after the other.
    fn by_sorting(scores: Scores, filters: Filters) -> Vec<TokenId> {
        let mut ids: Vec<TokenId> = (0..scores.logits.len() as u32).collect();
        ids.sort_by(|&a, &b| scores.at(b).total_cmp(&scores.at(a)).then(a.cmp(&b)));
        let max = scores.at(ids[0]);
        let mass = |&id: &TokenId| u64::from(weight(scores.at(id), max));
        ids.truncate(filters.top_k.unwrap_or(ids.len()));
        if let Some(p) = filters.top_p {
            let target = (f64::from(p) * ids.iter().map(mass).sum::<u64>() as f64).ceil() as u64;
            let mut reached = 0;
            let last = ids.iter().position(|id| {
                reached += mass(id);
                reached >= target
            });
            ids.truncate(last.expect("all of them reach it") + 1);
        }
        if let Some(least) = filters.min_score {
            ids.retain(|&id| scores.at(id) - max >= least);
        }
        ids
    }

    /// The tokens that [`keep`] keeps, by rank.
    fn kept(scores: Scores, filters: Filters) -> Vec<TokenId> {
        let mut kept = Vec::new();
        let max = scores.logits.iter().fold(f32::NEG_INFINITY, |a, b| a.max(b * scores.scale));
        keep(scores, max, filters, &mut kept);
        kept.sort_unstable();
        kept.iter().map(|r| r.token()).collect()
    }

    fn check(logits: &[f32], filters: Filters) {
        if filters.top_k.is_none() && filters.top_p.is_none() && filters.min_score.is_none() {
            return; // Filters::of returns no such filters.
        }
        let scores = Scores { logits, scale: 1.25 };
        assert_eq!(
            kept(scores, filters),
            by_sorting(scores, filters),
            "{filters:?} of {} tokens",
            logits.len()
        );
    }

    /// Rows that are flat, peaked, and full of exact ties.
    fn rows(len: u32) -> [Vec<f32>; 4] {
        let gumbel = |token| Noise { seed: 3, position: len }.gumbel(token);
        [
            vec![0.5; len as usize],
            (0..len).map(gumbel).collect(),
            (0..len).map(|token| 6.0 * gumbel(token)).collect(),
            (0..len).map(|token| (2.0 * gumbel(token)).floor()).collect(),
        ]
    }

    #[test]
    fn partitioning_keeps_the_same_tokens_as_sorting() {
        for len in [1u32, 2, 31, 64, 65, 500, 3000] {
            for logits in rows(len) {
                for top_k in [None, Some(1), Some(2), Some(40), Some(400)] {
                    let top_k = top_k.filter(|&k| k < len as usize);
                    for top_p in
                        [None, Some(-1.0), Some(0.0), Some(1e-9), Some(0.5), Some(0.95), Some(0.999_999_9)]
                    {
                        for min_score in [None, Some(0.0), Some(-3.0), Some(-60.0)] {
                            check(&logits, Filters { top_k, top_p, min_score });
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn of_tokens_tied_at_the_cut_the_lowest_ids_stay() {
        let scores = Scores { logits: &[1.0, 3.0, 1.0, 1.0, 2.0], scale: 1.0 };
        let only = |top_k, top_p| kept(scores, Filters { top_k, top_p, min_score: None });
        assert_eq!(only(Some(3), None), [1, 4, 0]);
        assert_eq!(only(Some(4), None), [1, 4, 0, 2]);
        // e^3 + e^2 + e = 30.2 of 35.6: the third token is needed to get over 0.8, and it is the lowest id.
        assert_eq!(only(None, Some(0.8)), [1, 4, 0]);
        assert_eq!(only(None, Some(0.5)), [1]);
    }

    #[test]
    fn mass_that_is_reached_exactly_is_enough() {
        let scores = Scores { logits: &[0.0; 4], scale: 1.0 };
        let only = |p| kept(scores, Filters { top_k: None, top_p: Some(p), min_score: None });
        assert_eq!(only(0.5), [0, 1]);
        assert_eq!(only(0.5f32.next_up()), [0, 1, 2]);
    }
}
