//! A matrix in a few figures.

use serde::Serialize;

use super::contest::Played;
use crate::stats::quantile::nearest_rank;

/// Below this ratio to the best rival, a cell counts as poor.
pub const POOR_RATIO: f64 = 0.98;
/// Least ratio in the geometric mean, which a single 0 would make 0.
const RATIO_FLOOR: f64 = 1e-3;

/// Figures of all cells that were played. A ratio is goodput over the best rival's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Cells that were played.
    pub cells: usize,
    /// Cells that were not, because plain decoding saturates at no load there.
    pub skipped: usize,
    /// Lowest ratio.
    pub ratio_min: f64,
    /// 10th percentile of the ratio, by nearest rank.
    pub ratio_p10: f64,
    /// Median ratio, by nearest rank.
    pub ratio_p50: f64,
    /// Geometric mean of the ratio.
    pub ratio_geometric_mean: f64,
    /// Cells with a ratio below [`POOR_RATIO`].
    pub poor: usize,
    /// The lowest ratio to each rival.
    pub rivals: Vec<RivalMinimum>,
    /// Cells with first tokens twice as late as the best rival's and no more attainment.
    pub late_for_nothing: usize,
}

/// The lowest ratio to one rival.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RivalMinimum {
    /// Name of the rival.
    pub policy: String,
    /// Goodput over the rival's, in the cell where it is lowest.
    pub ratio_min: f64,
}

/// Summarizes `played`; `None` if no cell was played.
pub fn summarize(played: &[Played], skipped: usize) -> Option<Summary> {
    let mut ratios: Vec<f64> = played.iter().map(Played::ratio).collect();
    let logarithms: f64 = ratios.iter().map(|ratio| ratio.max(RATIO_FLOOR).ln()).sum();
    let mut quantile = |share| nearest_rank(&mut ratios, share, f64::total_cmp);
    let (ratio_min, ratio_p10, ratio_p50) = (quantile(0.0)?, quantile(0.1)?, quantile(0.5)?);
    Some(Summary {
        cells: played.len(),
        skipped,
        ratio_min,
        ratio_p10,
        ratio_p50,
        ratio_geometric_mean: (logarithms / played.len() as f64).exp(),
        poor: ratios.iter().filter(|&&ratio| ratio < POOR_RATIO).count(),
        rivals: rival_minima(played),
        late_for_nothing: played.iter().filter(|played| played.is_late_for_nothing()).count(),
    })
}

fn rival_minima(played: &[Played]) -> Vec<RivalMinimum> {
    let rivals = played.first().map_or(&[][..], |first| &first.rivals);
    let minimum = |index: usize| played.iter().map(|one| one.ratio_to(index)).fold(f64::INFINITY, f64::min);
    let rivals = rivals.iter().enumerate();
    rivals
        .map(|(index, rival)| RivalMinimum { policy: rival.policy.clone(), ratio_min: minimum(index) })
        .collect()
}
