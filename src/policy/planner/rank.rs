//! The rank of draft positions, and sorting them fast.
//!
//! A position is packed into 64 bits: its inverted key, its depth, its row. Ascending
//! numbers are descending ranks; ties go by depth (which keeps any prefix of the order
//! closed under "all earlier positions of the row"), then by row.

use super::{Problem, Row};

/// Key bits dropped to get a bucket: 256 buckets for each halving of the key.
const BUCKET_SHIFT: u32 = 15;
/// Buckets: keys down to 2⁻⁸ of the largest are told apart, the rest share the last.
const BUCKETS: usize = 2048;
/// Fewer items than this are sorted without buckets.
const BUCKET_ITEMS_MIN: usize = 128;
/// Longest bucket that is sorted by insertion.
const INSERTION_MAX: usize = 24;

/// How positions are ranked: by value less the price of their own context, at the rate of
/// tokens per microsecond that the plain step reaches.
pub(super) struct Ranking {
    price: f32,
    /// Whether any row's drafts have a context price; if not, the key is the value itself.
    pub(super) priced: bool,
}

impl Ranking {
    pub(super) fn of(problem: &Problem<'_>) -> Ranking {
        let weight: f64 = problem.rows.iter().map(|row| f64::from(row.weight)).sum();
        let priced = problem.rows.iter().any(|row| row.query_us != 0.0);
        Ranking { price: (weight / problem.plain_us()) as f32, priced }
    }

    pub(super) fn pack(&self, problem: &Problem<'_>, row: usize, depth: usize) -> u64 {
        self.pack_value(&problem.rows[row], problem.survival(row, depth), row, depth)
    }

    /// What the item is worth, `w_r · S(r,i)`.
    #[inline]
    pub(super) fn value(&self, problem: &Problem<'_>, item: u64) -> f64 {
        if self.priced {
            let (row, depth) = (row_of(item), depth_of(item));
            return f64::from(problem.rows[row].weight * problem.survival(row, depth));
        }
        f64::from(f32::from_bits(!((item >> 32) as u32) & !(1 << 31)))
    }

    fn pack_value(&self, terms: &Row, survival: f32, row: usize, depth: usize) -> u64 {
        let key = terms.weight * survival - self.price * terms.query_us;
        let key = if depth < terms.positions as usize { key } else { f32::NEG_INFINITY };
        (u64::from(!ascending_bits(key)) << 32) | (depth as u64) << 16 | row as u64
    }

    /// Packs every position above `deepest` and puts the best `needed` in order.
    pub(super) fn sort(&self, problem: &Problem<'_>, deepest: usize, needed: usize, items: &mut Items) {
        items.unsorted.clear();
        for depth in 0..deepest {
            let survival = &problem.survival[depth * problem.rows.len()..][..problem.rows.len()];
            let rows = problem.rows.iter().zip(survival).enumerate();
            let pack = |(row, (terms, &survival))| self.pack_value(terms, survival, row, depth);
            items.unsorted.extend(rows.map(pack));
        }
        // Survival is at most 1, so no key is above the largest weight.
        let largest = problem.rows.iter().map(|row| row.weight).fold(0.0, f32::max);
        // Positions that a row does not have rank behind all others and are cut off.
        let positions = problem.rows.iter().map(|row| (row.positions as usize).min(deepest)).sum();
        items.sort(!ascending_bits(largest), needed.min(positions));
    }
}

pub(super) fn depth_of(item: u64) -> usize {
    (item >> 16) as usize & 0xffff
}

pub(super) fn row_of(item: u64) -> usize {
    item as usize & 0xffff
}

/// Bits whose unsigned order is the order of the numbers.
fn ascending_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    bits ^ (((bits as i32) >> 31) as u32 | 1 << 31)
}

/// Buffers of the bucket sort.
#[derive(Debug, Default)]
pub(super) struct Items {
    unsorted: Vec<u64>,
    pub(super) sorted: Vec<u64>,
    starts: Vec<u32>,
}

impl Items {
    /// Writes the `needed` smallest of the unsorted numbers to `sorted`, ascending; `best` is
    /// about the smallest key there can be.
    fn sort(&mut self, best: u32, needed: usize) {
        self.sorted.clear();
        if self.unsorted.len() < BUCKET_ITEMS_MIN {
            self.sorted.extend_from_slice(&self.unsorted);
            self.sorted.sort_unstable();
        } else {
            self.scatter(best);
            self.sort_buckets(needed);
        }
        self.sorted.truncate(needed);
    }

    /// Survivals are spread over a few octaves, so that one counting pass over the leading
    /// bits leaves buckets of a few items.
    fn scatter(&mut self, best: u32) {
        let bucket = |item: u64| {
            (((item >> 32) as u32).saturating_sub(best) >> BUCKET_SHIFT).min(BUCKETS as u32 - 1) as usize
        };
        self.starts.clear();
        self.starts.resize(BUCKETS + 1, 0);
        let starts = self.starts.as_mut_slice();
        for &item in &self.unsorted {
            starts[bucket(item) + 1] += 1;
        }
        let mut total = 0;
        for start in starts.iter_mut() {
            total += *start;
            *start = total;
        }
        self.sorted.resize(self.unsorted.len(), 0);
        let sorted = self.sorted.as_mut_slice();
        for &item in &self.unsorted {
            let place = &mut starts[bucket(item)];
            sorted[*place as usize] = item;
            *place += 1;
        }
    }

    /// After scattering, `starts[b]` is the end of bucket `b`.
    fn sort_buckets(&mut self, needed: usize) {
        let mut start = 0;
        for &end in &self.starts[..BUCKETS] {
            let end = end as usize;
            if end - start > 1 {
                sort_bucket(&mut self.sorted[start..end]);
            }
            start = end;
            if start >= needed {
                break;
            }
        }
    }
}

fn sort_bucket(items: &mut [u64]) {
    if items.len() > INSERTION_MAX {
        items.sort_unstable();
        return;
    }
    for place in 1..items.len() {
        let item = items[place];
        let mut hole = place;
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

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn the_bucket_sort_sorts(
            keys in prop::collection::vec(prop_oneof![-1.0f32..4.0, 0.4f32..0.401, Just(0.25f32), 0.0f32..1e-7], 0..400),
            needed in 0usize..500,
        ) {
            let pack = |(row, key): (usize, &f32)| (u64::from(!ascending_bits(*key)) << 32) | row as u64;
            let unsorted = keys.iter().enumerate().map(pack).collect();
            let mut items = Items { unsorted, ..Items::default() };
            let needed = needed.min(keys.len());
            items.sort(!ascending_bits(0.9), needed);
            let mut expected = items.unsorted.clone();
            expected.sort_unstable();
            expected.truncate(needed);
            prop_assert_eq!(&items.sorted, &expected);
            let ranked: Vec<f32> = items.sorted.iter().map(|&item| keys[row_of(item)]).collect();
            prop_assert!(ranked.windows(2).all(|pair| pair[0] >= pair[1]));
        }
    }
}
