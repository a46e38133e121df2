//! Finding the tokens that top-k, top-p and min-p keep, in linear expected time.
//!
//! Few tokens matter as a rule, so the search first gathers those within a few nats
//! of the best and widens that window only if they are not enough. Cuts are found by
//! partitioning, never by sorting more than [`SORT_MAX`] tokens.

use super::distribution::{Filters, Ranked, total_mass, weight};
use super::scan::Scores;

/// How far below the best score the first search looks, in nats.
const FIRST_WINDOW: f32 = 6.0;
/// How much further each next search looks.
const WINDOW_GROWTH: f32 = 1.5;
/// From here on the search takes the whole vocabulary: e^-32 is below the unit of mass.
const LAST_WINDOW: f32 = 32.0;
/// Tokens tested together for being far from the best.
const TILE: usize = 64;
/// Sets up to this size are sorted.
const SORT_MAX: usize = 32;

/// Writes the kept tokens to `kept`, in no particular order. Scores are finite and
/// `max_score` is their maximum.
pub(super) fn keep(scores: Scores, max_score: f32, filters: Filters, kept: &mut Vec<Ranked>) {
    // What top-p refers to: all tokens, or those that top-k keeps.
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

/// The mass of a set of tokens.
pub(super) fn mass_of(tokens: &[Ranked], max_score: f32) -> u64 {
    tokens.iter().map(|r| u64::from(weight(r.score(), max_score))).sum()
}

/// What top-p has to reach.
fn target_mass(p: f32, mass: u64) -> u64 {
    (f64::from(p) * mass as f64).ceil() as u64
}

/// Gathers a prefix of the ranking (unordered) that no filter's cut lies behind.
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

/// All tokens with `score - max_score >= least`.
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
    // The cut lies in from..to; what is before `from` is kept and has mass `before`.
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
