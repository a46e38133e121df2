//! The rank of draft positions: codes that order them, and buckets that need no sorting.
//!
//! A position's key becomes a code, a number that is the smaller for a better key. Keys fall
//! into buckets of equal width. Buckets are in order from the start; the positions of one are
//! sorted on demand, which is seldom needed.

use super::Problem;

/// Positions that a bucket holds, if keys are spread evenly.
const BUCKET_ITEMS: usize = 32;
/// Fewest buckets.
const BUCKETS_MIN: usize = 8;
/// Most buckets.
const BUCKETS_MAX: usize = 64;
/// Longest bucket that is sorted by insertion.
const INSERTION_MAX: usize = 24;
/// Share of the largest key that rounding may move a key across a bucket's edge.
const KEY_ROUNDING: f64 = 1e-5;
/// Code of a position that its row does not have.
const ABSENT: u32 = u32::MAX;

/// How positions are ranked: by value less the price of their own context, at the rate of
/// tokens per microsecond that the plain step reaches. Ties go by depth (which keeps any
/// prefix of the order closed under "all earlier positions of the row"), then by row.
#[derive(Debug, Default)]
pub(super) struct Ranking {
    /// Tokens per microsecond of the plain step.
    pub(super) price: f64,
    /// Weight of each row.
    weights: Vec<f32>,
    /// Microseconds that each draft of a row adds beside the staircase.
    queries_us: Vec<f32>,
    /// Drafts that each row may have.
    positions: Vec<u32>,
    /// Drafts of each row that exist.
    made: Vec<u32>,
    /// Code of each position, by depth, then by row.
    codes: Vec<u32>,
    /// Its bucket; one beyond the last for a position that does not exist.
    buckets: Vec<u32>,
    /// No key is above this.
    largest: f32,
    /// Number of buckets between it and 0.
    bucket_count: usize,
    /// All positions, bucket by bucket, not packed yet.
    position_ids: Vec<u32>,
    /// The same, packed, where a bucket has been put in order.
    list: Vec<u64>,
    /// Where each bucket begins in the list, and where the last one ends.
    starts: Vec<u32>,
    /// Which buckets have been put in order.
    sorted: Vec<bool>,
}

impl Ranking {
    /// Ranks every position above `deepest`.
    pub(super) fn prepare(&mut self, problem: &Problem<'_>, deepest: usize) {
        let rows = problem.rows;
        self.weights.clear();
        self.weights.extend(rows.iter().map(|row| row.weight));
        self.queries_us.clear();
        self.queries_us.extend(rows.iter().map(|row| row.query_us));
        self.positions.clear();
        self.positions.extend(rows.iter().map(|row| row.positions));
        self.made.clear();
        self.made.extend(rows.iter().map(|row| row.made));
        self.price = (problem.priced_tokens + problem.weight()) / problem.plain_us();
        self.largest = self.weights.iter().copied().fold(0.0, f32::max);
        let buckets = (rows.len() * deepest / BUCKET_ITEMS).next_power_of_two();
        self.bucket_count = buckets.clamp(BUCKETS_MIN, BUCKETS_MAX);
        self.encode(problem, deepest);
    }

    fn encode(&mut self, problem: &Problem<'_>, deepest: usize) {
        let (price, largest, rows) = (self.price as f32, self.largest, problem.rows.len());
        let per_key = self.bucket_count as f32 / largest.max(f32::MIN_POSITIVE);
        let last = self.bucket_count as u32 - 1;
        self.codes.resize(rows * deepest, 0);
        self.buckets.resize(rows * deepest, 0);
        for depth in 0..deepest {
            let range = depth * rows..(depth + 1) * rows;
            let codes = self.codes[range.clone()].iter_mut().zip(&mut self.buckets[range.clone()]);
            let terms = self.weights.iter().zip(&self.queries_us).zip(&self.positions);
            let positions = terms.zip(&problem.survival[range]);
            for ((code, bucket), (((weight, query_us), &positions), survival)) in codes.zip(positions) {
                let key = weight * survival - price * query_us;
                let below = small_integer((largest - key) * per_key, last as f32);
                // All bits where the row has no such position: written without branches, the loop
                // is vectorised.
                let absent = u32::from(positions <= depth as u32).wrapping_neg();
                *code = code_of(key) | absent;
                *bucket = below & !absent | (last + 1) & absent;
            }
        }
    }

    /// Number of buckets; what lies below the last one's width is in it, too.
    pub(super) fn buckets(&self) -> usize {
        self.bucket_count
    }

    /// The bucket of each row's position at a depth; one beyond the last where there is none.
    pub(super) fn buckets_at(&self, depth: usize) -> &[u32] {
        &self.buckets[depth * self.weights.len()..][..self.weights.len()]
    }

    fn codes_at(&self, depth: usize) -> &[u32] {
        &self.codes[depth * self.weights.len()..][..self.weights.len()]
    }

    /// No key in `bucket` or behind it is above this.
    pub(super) fn best_key(&self, bucket: usize) -> f64 {
        let below = (bucket as f64 - 0.5) / self.bucket_count as f64;
        f64::from(self.largest) * (1.0 - below + KEY_ROUNDING)
    }

    /// A packed number that is above all positions before `bucket` and not above the others.
    pub(super) fn frontier(&mut self, bucket: usize) -> u64 {
        let filled =
            (bucket..self.bucket_count).find(|&bucket| self.starts[bucket] < self.starts[bucket + 1]);
        filled.map_or(pack(ABSENT, 0), |bucket| {
            let (first, _) = self.sort(bucket);
            self.list[first]
        })
    }

    /// Weight and own microseconds of each row.
    pub(super) fn terms(&self) -> impl Iterator<Item = (f32, f32)> + '_ {
        self.weights.iter().copied().zip(self.queries_us.iter().copied())
    }

    /// Drafts of each row that exist.
    pub(super) fn made(&self) -> &[u32] {
        &self.made
    }

    /// The draft call to come that makes a position, from 1; 0 for one that exists.
    pub(super) fn level(&self, item: u64) -> usize {
        level_of(depth_of(item), self.made[row_of(item)])
    }

    /// What a position is worth, `w_r · S(r,i)`.
    pub(super) fn value(&self, problem: &Problem<'_>, item: u64) -> f64 {
        let (row, depth) = (row_of(item), depth_of(item));
        f64::from(self.weights[row] * problem.survival(row, depth))
    }

    /// What a position's own context adds to the step, in microseconds.
    pub(super) fn query_us(&self, item: u64) -> f64 {
        f64::from(self.queries_us[row_of(item)])
    }

    /// Lists all positions within `cap` by bucket, given where each bucket begins.
    pub(super) fn list(&mut self, cap: usize, starts: impl Iterator<Item = u32>) {
        let buckets = self.buckets();
        self.starts.clear();
        self.starts.extend(starts);
        self.sorted.clear();
        self.sorted.resize(buckets, false);
        let mut next = [0u32; BUCKETS_MAX + 1];
        next[..=buckets].copy_from_slice(&self.starts);
        self.position_ids.resize(self.codes.len(), 0);
        self.list.resize(self.codes.len(), 0);
        let rows = self.weights.len();
        for depth in 0..self.codes.len().checked_div(rows).unwrap_or(0) {
            let of_depth = self.buckets[depth * rows..][..rows].iter().zip(&self.made);
            for (id, (&bucket, &made)) in (position_id(depth, 0)..).zip(of_depth) {
                // what lies beyond the cap goes where the positions are that do not exist
                let bucket = if level_of(depth, made) <= cap { bucket as usize } else { buckets };
                let next = &mut next[bucket];
                self.position_ids[*next as usize] = id;
                *next += 1;
            }
        }
    }

    /// Where `bucket` begins and ends in the list, whose positions there are in order now.
    pub(super) fn sort(&mut self, bucket: usize) -> (usize, usize) {
        let (start, end) = (self.starts[bucket] as usize, self.starts[bucket + 1] as usize);
        if !std::mem::replace(&mut self.sorted[bucket], true) {
            let items = &mut self.list[start..end];
            for (item, &id) in items.iter_mut().zip(&self.position_ids[start..end]) {
                let (row, depth) = (row_of(id.into()), depth_of(id.into()));
                *item = pack(self.codes[depth * self.weights.len() + row], id);
            }
            sort_bucket(items);
        }
        (start, end)
    }

    /// The position at an index of the list, in a bucket that is in order.
    pub(super) fn at(&self, index: usize) -> u64 {
        self.list[index]
    }

    /// Adds to `lengths` the positions within `cap` that come before `frontier`.
    pub(super) fn count_before(&self, frontier: u64, cap: usize, lengths: &mut [u32]) {
        let (last_code, last) = ((frontier >> 32) as u32, frontier as u32);
        for depth in 0..self.codes.len().checked_div(lengths.len()).unwrap_or(0) {
            // Of the positions with the very code of the frontier, rows before this one.
            let tied = last.saturating_sub(position_id(depth, 0)).min(lengths.len() as u32) as usize;
            let (before, behind) = self.codes_at(depth).split_at(tied);
            let (lengths_before, lengths_behind) = lengths.split_at_mut(tied);
            let (made_before, made_behind) = self.made.split_at(tied);
            let count = |((length, &code), &made): ((&mut u32, &u32), &u32), limit| {
                *length += u32::from(code < limit && level_of(depth, made) <= cap);
            };
            let positions = lengths_before.iter_mut().zip(before).zip(made_before);
            positions.for_each(|position| count(position, last_code.saturating_add(1)));
            let positions = lengths_behind.iter_mut().zip(behind).zip(made_behind);
            positions.for_each(|position| count(position, last_code));
        }
    }
}

/// The draft call to come that makes the position at a depth of a row of which so many exist, from 1; 0
/// for one of these.
#[inline]
pub(super) fn level_of(depth: usize, made: u32) -> usize {
    (depth + 1).saturating_sub(made as usize)
}

/// Depth and row in one number.
fn position_id(depth: usize, row: usize) -> u32 {
    (depth << 16 | row) as u32
}

/// A position as a number; ascending numbers are descending ranks.
fn pack(code: u32, id: u32) -> u64 {
    u64::from(code) << 32 | u64::from(id)
}

pub(super) fn depth_of(item: u64) -> usize {
    (item >> 16) as usize & 0xffff
}

pub(super) fn row_of(item: u64) -> usize {
    item as usize & 0xffff
}

/// Bits whose unsigned order is the opposite of the order of the numbers.
#[inline]
fn code_of(key: f32) -> u32 {
    let bits = key.to_bits();
    !(bits ^ (((bits as i32) >> 31) as u32 | 1 << 31))
}

/// `value` to the nearest integer of 0 to `most`. An ordinary conversion, which looks out for
/// numbers that fit nowhere, would keep the loop around it from being vectorised.
#[inline]
fn small_integer(value: f32, most: f32) -> u32 {
    /// Numbers from here to its double have no fraction, and their low bits count.
    const WHOLE: f32 = (1 << 23) as f32;
    let value = if value > 0.0 { value } else { 0.0 };
    let value = if value < most { value } else { most };
    (value + WHOLE).to_bits() - WHOLE.to_bits()
}

fn sort_bucket(items: &mut [u64]) {
    if items.len() > INSERTION_MAX {
        items.sort_unstable();
        return;
    }
    for index in 1..items.len() {
        let item = items[index];
        let mut hole = index;
        while hole > 0 && items[hole - 1] > item {
            items[hole] = items[hole - 1];
            hole -= 1;
        }
        items[hole] = item;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Curve, Row};
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn buckets_put_in_order_one_after_the_other_hold_all_positions_in_rank_order(
            keys in prop::collection::vec(prop_oneof![0.0f32..1.0, 0.4f32..0.401, Just(0.25f32), 0.0f32..1e-7], 1..400),
            query_us in prop_oneof![Just(0.0f32), 0.0f32..2.0],
        ) {
            let row = |index| Row { weight: 1.0, query_us, positions: u32::from(index % 7 > 0), made: 1 };
            let rows: Vec<Row> = (0..keys.len()).map(row).collect();
            let problem = Problem {
                rows: &rows,
                survival: &keys,
                target: Curve { table: &[keys.len() as f64], factor: 1.0, row_us: 0.0 },
                draft: Curve::ZERO,
                requests: keys.len(),
                priced_us: 0.0,
                priced_tokens: 0.0,
                rows_max: 1000,
            };
            let mut ranking = Ranking::default();
            ranking.prepare(&problem, 1);
            let buckets = ranking.buckets_at(0);
            let count = |before| buckets.iter().filter(|&&bucket| bucket < before as u32).count() as u32;
            let starts: Vec<u32> = (0..=ranking.buckets()).map(count).collect();
            ranking.list(1, starts.into_iter());
            let mut ranked = Vec::new();
            for bucket in 0..ranking.buckets() {
                let (start, end) = ranking.sort(bucket);
                for index in start..end {
                    let item = ranking.at(index);
                    let frontiers = (ranking.frontier(bucket), ranking.frontier(bucket + 1));
                    prop_assert!(frontiers.0 <= item && item < frontiers.1);
                    prop_assert!(f64::from(keys[row_of(item)] - query_us) <= ranking.best_key(bucket) + 1e-6);
                    ranked.push(item);
                }
            }
            let packed = |row: usize| pack(ranking.codes_at(0)[row], position_id(0, row));
            let mut expected: Vec<u64> = (0..keys.len()).filter(|row| row % 7 > 0).map(packed).collect();
            expected.sort_unstable();
            prop_assert_eq!(ranked, expected);
        }
    }

    #[test]
    fn codes_order_keys_backwards() {
        let keys = [3.0, 1.0, 0.999, 1e-3, 1e-30, 0.0, -1e-30, -0.5, -2.0];
        assert!(keys.windows(2).all(|pair| code_of(pair[0]) < code_of(pair[1])));
    }
}
