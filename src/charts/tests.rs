use super::draw_profile;
use super::panel::{Panel, Series, staircase};
use crate::protocol::ModelRole;
use crate::timing::ProfilePoint;
use crate::timing::profile::Profile;
use crate::timing::profile::tests::gpu_like;

/// A profile of both models with points on and near its own law.
fn profile() -> Profile {
    let mut profile = gpu_like();
    let cost = profile.cost_model().expect("valid");
    let draft = cost.draft.as_ref().expect("a draft model");
    profile.points.clear();
    for (role, model) in [(ModelRole::Target, &cost.target), (ModelRole::Draft, draft)] {
        for (rows, context_tokens) in [(1, 64), (1, 512), (8, 64), (8, 512), (64, 64), (64, 512)] {
            for prefill_tokens in [0, 128] {
                let mut point = ProfilePoint {
                    model: role,
                    rows,
                    sequences: rows,
                    context_tokens,
                    prefill_tokens,
                    prefill_done_tokens: 0,
                    head_calls: None,
                    micros: 1.0,
                };
                point.micros = model.micros(&point.work()) * (0.9 + 0.02 * f64::from(rows.ilog2()));
                profile.points.push(point);
            }
        }
    }
    profile
}

/// Counts elements; panics when tags don't match.
fn elements(svg: &str) -> usize {
    let (mut open, mut count) = (Vec::new(), 0);
    for part in svg.split('<').skip(1) {
        let (tag, text) = part.split_once('>').expect("a tag ends");
        assert!(!text.contains('>') && tag.matches('"').count().is_multiple_of(2), "{part}");
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name)),
            None => {
                count += 1;
                let name = tag.split_whitespace().next().expect("a name");
                if !tag.ends_with('/') {
                    open.push(name);
                }
            }
        }
    }
    assert!(open.is_empty(), "{open:?} are not closed");
    count
}

#[test]
fn the_picture_is_well_formed_and_shows_every_point() {
    let mut profile = profile();
    profile.fingerprint.device = "a <fast> \"one\" & only".to_owned();
    let svg = draw_profile(&profile).expect("drawn");
    assert!(elements(&svg) > profile.points.len());
    // every point in its agreement panel, those without prefill also in the panel over rows
    let decoding = profile.points.iter().filter(|point| point.prefill_tokens == 0).count();
    assert!(svg.matches("<circle").count() >= profile.points.len() + decoding);
    assert!(svg.contains("&lt;fast&gt;") && !svg.contains("NaN") && !svg.contains("inf"));
    profile.draft = None;
    profile.points.clear();
    assert!(elements(&draw_profile(&profile).expect("drawn without points")) > 10);
    profile.points = vec![ProfilePoint {
        model: ModelRole::Target,
        rows: 1,
        sequences: 1,
        context_tokens: 1,
        prefill_tokens: 0,
        prefill_done_tokens: 0,
        head_calls: None,
        micros: 1.0,
    }];
    assert!(!draw_profile(&profile).expect("drawn with one point").contains("NaN"));
}

#[test]
fn a_staircase_steps_up_right_behind_each_point() {
    let stairs = staircase(&[(1.0, 5.0), (8.0, 6.0), (16.0, 9.0)]);
    assert_eq!(stairs, [(1.0, 5.0), (1.0, 6.0), (8.0, 6.0), (8.0, 9.0), (16.0, 9.0)]);
    assert!(staircase(&[]).is_empty());
}

#[test]
fn axes_hold_all_points_and_have_two_round_ticks_at_least() {
    let series =
        Series { name: String::new(), colour: [0; 3], line: vec![(1.0, 0.3)], dots: vec![(1000.0, 0.4)] };
    let panel = Panel { title: String::new(), x_label: "", y_label: "", series: vec![series] };
    let (x, y) = (panel.x_axis(), panel.y_axis());
    assert!(x.low < 1.0 && x.high > 1000.0 && y.low < 0.3 && y.high > 0.4);
    assert_eq!(x.ticks(), [1.0, 10.0, 100.0, 1000.0]);
    assert_eq!(y.ticks(), [y.low, y.high], "no round value lies between");
}
