//! The sizes that a fit finds times for, and where a pass lies among them.

use super::cost_model::{Between, LatencyTerms, prefill_rows, stair};
use super::point::ProfilePoint;

/// Rows of a tile of the matrix products that are bound by arithmetic: their time steps there.
const TILE_ROWS: u32 = 128;
/// Padded passes with prefill are priced by whole tiles above this many rows.
const TILE_ROWS_FROM: u32 = 256;

/// See the module's documentation.
pub(super) struct Sizes {
    pub between: Between,
    pub prefill_row: f64,
    /// Measured decode and verification rows, ascending.
    decoding: Vec<u32>,
    /// All sizes, ascending.
    pub all: Vec<u32>,
}

impl Sizes {
    pub fn of(points: &[ProfilePoint], between: Between, prefill_row: f64) -> Sizes {
        let decoding = ascending(points.iter().map(|point| point.rows).filter(|&rows| rows > 0).collect());
        let mut found = Sizes { between, prefill_row, all: decoding.clone(), decoding };
        match between {
            Between::Pad => {
                let padded: Vec<u32> = points.iter().map(|point| found.padded(point)).collect();
                found.all.extend(padded);
            }
            Between::Interpolate => {
                let most = points.iter().map(|point| found.rows(point)).max();
                found.all.extend(most.filter(|most| found.decoding.last().is_some_and(|last| most > last)));
            }
        }
        found.all = ascending(found.all);
        found
    }

    /// All rows of a pass.
    fn rows(&self, point: &ProfilePoint) -> u32 {
        point.rows.saturating_add(prefill_rows(self.prefill_row, point.work().prefill_tokens))
    }

    /// The size that a pass is padded to.
    fn padded(&self, point: &ProfilePoint) -> u32 {
        if point.work().prefill_tokens == 0 {
            return point.rows;
        }
        let rows = self.rows(point);
        let captured = self.decoding.iter().copied().find(|&size| size >= rows && rows <= TILE_ROWS_FROM);
        captured.unwrap_or_else(|| rows.next_multiple_of(TILE_ROWS))
    }

    /// Index of the size at or above a pass, and how much of its time is that size's; the rest is
    /// that of the size below.
    pub fn place(&self, point: &ProfilePoint) -> (usize, f64) {
        match self.between {
            Between::Pad => (self.all.partition_point(|&size| size < self.padded(point)), 1.0),
            Between::Interpolate => {
                let rows = self.rows(point);
                let above = self.all.partition_point(|&size| size < rows);
                if above == 0 {
                    return (0, 1.0);
                }
                let (left, right) = (self.all[above - 1], self.all[above]);
                (above, f64::from(rows - left) / f64::from(right - left))
            }
        }
    }

    /// The staircase, given a time for each size. Tiles that were not measured are read off between
    /// their neighbours.
    pub fn staircase(&self, micros: &[f64]) -> (Vec<u32>, Vec<f64>) {
        let last = *self.all.last().expect("there are decode rows");
        let tiles =
            (TILE_ROWS_FROM..last).step_by(TILE_ROWS as usize).filter(|_| self.between == Between::Pad);
        let rows = ascending(tiles.filter(|&tile| tile > self.all[0]).chain(self.all.clone()).collect());
        // not from a model's table, which may end before the longest prefill
        let between = LatencyTerms::staircase(Between::Interpolate, &self.all, micros);
        let times = rows.iter().map(|&rows| stair(&between, 0.0, rows)).collect();
        (rows, times)
    }
}

fn ascending(mut sizes: Vec<u32>) -> Vec<u32> {
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}
