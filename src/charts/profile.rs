//! A profile as a chart: the measured points, the fitted staircase, and how well they agree.

use super::ChartError;
use super::panel::{Panel, Point, Series, staircase};
use super::plot;
use crate::protocol::ModelRole;
use crate::timing::ProfilePoint;
use crate::timing::cost_model::{Between, LatencyModel};
use crate::timing::fit::FitError;
use crate::timing::profile::Profile;

/// Colours that remain distinct to people who can't see red (Okabe and Ito).
const COLOURS: [[u8; 3]; 6] = [
    [0x00, 0x72, 0xb2],
    [0xe6, 0x9f, 0x00],
    [0x00, 0x9e, 0x73],
    [0xcc, 0x79, 0xa7],
    [0x56, 0xb4, 0xe9],
    [0xd5, 0x5e, 0x00],
];
const DECODE: [u8; 3] = COLOURS[0];
const PREFILL: [u8; 3] = COLOURS[5];
const DIAGONAL: [u8; 3] = [0x88, 0x88, 0x88];

/// Draws a profile as SVG: for each model, time over rows by context, and predicted over
/// measured time.
///
/// # Errors
/// [`ChartError::Profile`] when the profile's time model is invalid.
pub fn draw_profile(profile: &Profile) -> Result<String, ChartError> {
    let cost = profile.cost_model()?;
    let mut models = vec![(ModelRole::Target, &cost.target, profile.target_error)];
    models.extend(cost.draft.as_ref().map(|draft| (ModelRole::Draft, draft, profile.draft_error)));
    let rows: Vec<[Panel; 2]> = models
        .into_iter()
        .map(|(role, model, error)| {
            let points: Vec<&ProfilePoint> =
                profile.points.iter().filter(|point| point.model == role).collect();
            [by_rows(role, model, &points), agreement(role, model, &points, error)]
        })
        .collect();
    let fingerprint = &profile.fingerprint;
    let heading = format!("{} profile, {}: {}", profile.origin, fingerprint.backend, fingerprint.device);
    plot::svg(&heading, &rows)
}

fn name(role: ModelRole) -> &'static str {
    match role {
        ModelRole::Target => "Target",
        ModelRole::Draft => "Draft",
    }
}

fn measured_ms(point: &ProfilePoint) -> f64 {
    point.micros / 1e3
}

fn predicted_ms(model: &LatencyModel, point: &ProfilePoint) -> f64 {
    model.micros(&point.work()) / 1e3
}

/// Time over rows of batches without prefill, a colour for each context.
fn by_rows(role: ModelRole, model: &LatencyModel, points: &[&ProfilePoint]) -> Panel {
    let decoding = widest(points);
    let contexts = usual_contexts(&decoding);
    let series = contexts.iter().zip(COLOURS).map(|(&context, colour)| {
        let mut own: Vec<&ProfilePoint> =
            decoding.iter().copied().filter(|point| point.context_tokens == context).collect();
        own.sort_by_key(|point| point.rows);
        let at = |point: &ProfilePoint, ms: f64| (f64::from(point.rows), ms);
        let line: Vec<Point> = own.iter().map(|point| at(point, predicted_ms(model, point))).collect();
        Series {
            name: format!("context {context}"),
            colour,
            line: if model.terms().between == Between::Pad { staircase(&line) } else { line },
            dots: own.iter().map(|point| at(point, measured_ms(point))).collect(),
        }
    });
    Panel {
        title: format!("{}: dots measured, lines fitted", name(role)),
        x_label: "rows in the batch",
        y_label: "milliseconds",
        series: series.collect(),
    }
}

/// The contexts that most row counts were measured at, ascending; at most one for each
/// colour. Long contexts that only a few row counts share would be dots without a line.
fn usual_contexts(points: &[&ProfilePoint]) -> Vec<u32> {
    let count = |context: u32| points.iter().filter(|point| point.context_tokens == context).count();
    let mut contexts: Vec<u32> = points.iter().map(|point| point.context_tokens).collect();
    contexts.sort_unstable();
    contexts.dedup();
    let most = contexts.iter().map(|&context| count(context)).max().unwrap_or(0);
    contexts.retain(|&context| count(context) * 4 >= most);
    contexts.truncate(COLOURS.len());
    contexts
}

/// Of the points without prefill, those with the most sequences of their row count.
fn widest<'a>(points: &[&'a ProfilePoint]) -> Vec<&'a ProfilePoint> {
    let decoding: Vec<&ProfilePoint> =
        points.iter().copied().filter(|point| point.prefill_tokens == 0).collect();
    let most = |rows: u32| decoding.iter().filter(|one| one.rows == rows).map(|one| one.sequences).max();
    decoding.iter().copied().filter(|point| Some(point.sequences) == most(point.rows)).collect()
}

/// Predicted over measured time of all points.
fn agreement(
    role: ModelRole,
    model: &LatencyModel,
    points: &[&ProfilePoint],
    error: Option<FitError>,
) -> Panel {
    let dots = |with_prefill: bool| -> Vec<Point> {
        let own = points.iter().filter(|point| (point.prefill_tokens > 0) == with_prefill);
        own.map(|point| (measured_ms(point), predicted_ms(model, point))).collect()
    };
    let series = |name: &str, colour, line, dots| Series { name: name.to_owned(), colour, line, dots };
    let (decode, prefill) = (dots(false), dots(true));
    let diagonal = diagonal(decode.iter().chain(&prefill));
    let error = error.map_or_else(String::new, |error| {
        format!("; held out: mean error {:.1} %, p99 {:.1} %", error.mape * 100.0, error.p99 * 100.0)
    });
    Panel {
        title: format!("{}: {} shapes{error}", name(role), points.len()),
        x_label: "measured milliseconds",
        y_label: "predicted milliseconds",
        series: vec![
            series("", DIAGONAL, diagonal, Vec::new()),
            series("decode, verify", DECODE, Vec::new(), decode),
            series("with prefill", PREFILL, Vec::new(), prefill),
        ],
    }
}

/// The line of equal times, as long as the points need.
fn diagonal<'a>(points: impl Iterator<Item = &'a Point>) -> Vec<Point> {
    let times: Vec<f64> = points.flat_map(|&(measured, predicted)| [measured, predicted]).collect();
    let low = times.iter().copied().reduce(f64::min);
    let high = times.iter().copied().reduce(f64::max);
    low.zip(high).map_or_else(Vec::new, |(low, high)| vec![(low, low), (high, high)])
}
