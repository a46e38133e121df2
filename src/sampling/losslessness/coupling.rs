//! The exact joint law of target and draft under shared noise.
//!
//! Gumbel-max is a race of exponentials: with E_v standard exponential, independent,
//! x = argmin E_v / p_v and d = argmin E_v / q_v. The probability of (x, d) = (i, j) is
//! a rational function of p and q; so all of this is in fractions.

use super::fraction::{Fraction, fraction};
use crate::protocol::{SamplingParams, TokenId};
use crate::sampling::{SampledToken, Sampler, TokenHistory, walk_chain};

/// A distribution with no zeros.
type Table = Vec<Fraction>;

fn table(parts: &[i128]) -> Table {
    let whole = parts.iter().sum();
    parts.iter().map(|&part| fraction(part, whole)).collect()
}

/// P(x = d = i) = 1 / Σ_y max(p_y / p_i, q_y / q_i).
fn agreement(p: &Table, q: &Table, i: usize) -> Fraction {
    Fraction::ONE / (0..p.len()).map(|y| (p[y] / p[i]).max(q[y] / q[i])).sum()
}

/// P(x = i, d = j). For i ≠ j let t = E_j / E_i. The two win iff p_j/p_i ≤ t ≤ q_j/q_i and
/// every other E_v ≥ E_i · max(p_v/p_i, t · q_v/q_j). With E_i integrated out that is
/// ∫ dt / L(t)², L(t) = 1 + t + Σ_v max(p_v/p_i, t · q_v/q_j), which is linear between
/// the points where a maximum changes sides, and there gives (t₂ - t₁) / (L(t₁) · L(t₂)).
fn joint(p: &Table, q: &Table, i: usize, j: usize) -> Fraction {
    if i == j {
        return agreement(p, q, i);
    }
    let (from, to) = (p[j] / p[i], q[j] / q[i]);
    if from >= to {
        return Fraction::ZERO;
    }
    let others: Vec<usize> = (0..p.len()).filter(|&v| v != i && v != j).collect();
    let rate = |t: Fraction| {
        let bounds = others.iter().map(|&v| (p[v] / p[i]).max(t * q[v] / q[j])).sum::<Fraction>();
        Fraction::ONE + t + bounds
    };
    let mut points: Vec<Fraction> = others.iter().map(|&v| p[v] / p[i] * q[j] / q[v]).collect();
    points.retain(|t| from < *t && *t < to);
    points.extend([from, to]);
    points.sort();
    points.windows(2).map(|t| (t[1] - t[0]) / (rate(t[0]) * rate(t[1]))).sum()
}

/// A target and a draft over two positions: the first, then one for each first token.
struct Pair {
    target: (Table, Vec<Table>),
    draft: (Table, Vec<Table>),
}

/// The example of the usual table, with second positions that disagree in other ways.
fn three_tokens() -> Pair {
    let second = |a: &[i128], b: &[i128], c: &[i128]| vec![table(a), table(b), table(c)];
    Pair {
        target: (table(&[5, 3, 2]), second(&[1, 1, 8], &[4, 4, 2], &[3, 5, 2])),
        draft: (table(&[6, 3, 1]), second(&[8, 1, 1], &[4, 4, 2], &[1, 2, 7])),
    }
}

fn two_tokens() -> Pair {
    Pair {
        target: (table(&[3, 7]), vec![table(&[1, 9]), table(&[1, 1])]),
        draft: (table(&[8, 2]), vec![table(&[7, 3]), table(&[2, 3])]),
    }
}

fn four_tokens() -> Pair {
    let flat = table(&[1, 1, 1, 1]);
    let skew = table(&[4, 3, 2, 1]);
    Pair {
        target: (skew.clone(), vec![flat.clone(), skew.clone(), table(&[1, 2, 3, 4]), flat.clone()]),
        draft: (table(&[1, 4, 2, 3]), vec![skew.clone(), skew, flat.clone(), flat]),
    }
}

/// The joint distribution of the first two emitted tokens when of the chain d₁, d₂ the
/// rule keeps `keep(d₁, d₂)` drafts, and later steps emit what is missing.
fn emitted(pair: &Pair, keep: &dyn Fn(usize, usize) -> usize) -> Vec<Vec<Fraction>> {
    let vocab = pair.target.0.len();
    let mut mass = vec![vec![Fraction::ZERO; vocab]; vocab];
    for (x1, d1) in (0..vocab * vocab).map(|n| (n / vocab, n % vocab)) {
        let first = joint(&pair.target.0, &pair.draft.0, x1, d1);
        for (x2, d2) in (0..vocab * vocab).map(|n| (n / vocab, n % vocab)) {
            let weight = first * joint(&pair.target.1[x1], &pair.draft.1[d1], x2, d2);
            // The target's samples along its own path; verification never leaves that path.
            let own = [x1 as TokenId, x2 as TokenId, 0];
            let drafts = [d1 as TokenId, d2 as TokenId];
            let sample = |index: usize| SampledToken { token: own[index], finite: true };
            let mut tokens = walk_chain(&drafts[..keep(d1, d2)], sample).tokens;
            // A shorter step is followed by one without drafts, under the same noise.
            while tokens.len() < 2 {
                tokens.push(own[tokens.len()]);
            }
            let emitted = &mut mass[tokens[0] as usize][tokens[1] as usize];
            *emitted = *emitted + weight;
        }
    }
    mass
}

fn assert_lossless(pair: &Pair, keep: &dyn Fn(usize, usize) -> usize) {
    for (a, row) in emitted(pair, keep).into_iter().enumerate() {
        for (b, mass) in row.into_iter().enumerate() {
            assert_eq!(mass, pair.target.0[a] * pair.target.1[a][b], "tokens {a} {b}");
        }
    }
}

#[test]
fn the_joint_law_has_target_and_draft_as_its_margins() {
    for Pair { target, draft } in [two_tokens(), three_tokens(), four_tokens()] {
        for (p, q) in std::iter::once((&target.0, &draft.0)).chain(target.1.iter().zip(&draft.1)) {
            let tokens = || 0..p.len();
            for i in tokens() {
                assert_eq!(tokens().map(|j| joint(p, q, i, j)).sum::<Fraction>(), p[i], "target");
                assert_eq!(tokens().map(|j| joint(p, q, j, i)).sum::<Fraction>(), q[i], "draft");
            }
        }
    }
}

#[test]
fn pruning_on_drafted_values_never_shifts_the_output() {
    for pair in [three_tokens(), four_tokens()] {
        let own = |d1: usize| pair.draft.0[d1];
        let next = |d1: usize, d2: usize| pair.draft.1[d1][d2];
        let low = fraction(1, 5);
        assert_lossless(&pair, &|_, _| 2);
        assert_lossless(&pair, &|_, _| 0);
        assert_lossless(&pair, &|d1, _| if own(d1) < low { 0 } else { 2 });
        assert_lossless(&pair, &|d1, _| if own(d1) < fraction(1, 2) { 0 } else { 1 });
        assert_lossless(&pair, &|d1, d2| if next(d1, d2) < low { 1 } else { 2 });
        assert_lossless(&pair, &|d1, d2| if next(d1, d2) > own(d1) { 2 } else { 0 });
        assert_lossless(&pair, &|d1, d2| (d1 + 2 * d2) % 3);
    }
}

/// Exhaustive: all 3^4 pruning rules of two binary drafts.
#[test]
fn no_pruning_rule_shifts_the_output_of_two_tokens() {
    for rule in 0..81usize {
        assert_lossless(&two_tokens(), &|d1, d2| rule / 3usize.pow((2 * d1 + d2) as u32) % 3);
    }
}

#[test]
fn acceptance_matches_the_closed_form() {
    let Pair { target: (p, _), draft: (q, _) } = three_tokens();
    let shared: Fraction = (0..3).map(|i| agreement(&p, &q, i)).sum();
    assert_eq!(shared, fraction(48, 55));
    let ratio: Fraction = (0..3).map(|i| p[i].min(q[i])).sum();
    assert_eq!(ratio, fraction(9, 10));
    let independent: Fraction = (0..3).map(|i| p[i] * q[i]).sum();
    assert_eq!(independent, fraction(41, 100));
}

/// The sampler has the joint law, cell by cell, not only its margins.
#[test]
fn the_sampler_couples_target_and_draft_as_computed() {
    let Pair { target: (p, _), draft: (q, _) } = three_tokens();
    let logits = |table: &Table| table.iter().map(|p| p.to_f64().ln() as f32).collect::<Vec<f32>>();
    let (target, draft, none) = (logits(&p), logits(&q), TokenHistory::none());
    let mut sampler = Sampler::new();
    let (mut counts, n) = ([[0u32; 3]; 3], 200_000u32);
    for i in 0..n {
        let params =
            SamplingParams { temperature: 1.0, seed: u64::from(i / 1000), ..SamplingParams::greedy() };
        let x = sampler.sample(&target, &params, i % 1000, &none).token;
        let d = sampler.propose(&draft, &params, i % 1000, &none).token;
        counts[x as usize][d as usize] += 1;
    }
    for (i, row) in counts.iter().enumerate() {
        for (j, &count) in row.iter().enumerate() {
            let expected = joint(&p, &q, i, j).to_f64();
            let deviation = (f64::from(n) * expected * (1.0 - expected)).sqrt();
            let error = (f64::from(count) - f64::from(n) * expected).abs();
            assert!(error <= 4.4 * deviation, "x = {i}, d = {j}: {count} of {n}, expected {expected:.4}");
        }
    }
}
