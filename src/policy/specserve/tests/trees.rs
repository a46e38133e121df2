//! Which drafts of a tree are fed, and which are verified.

use super::*;
use crate::policy::calibration::CalibrationMode;
use crate::protocol::DraftPlace;

fn of_shape(shape: Shape) -> SpecServe {
    let options =
        SpecServeOptions { shape, calibration: CalibrationMode::Raw, ..SpecServeOptions::default() };
    SpecServe::new(gpu_like().cost_model().unwrap(), None, options)
}

/// Answers of the drafter, by parent and with the confidence of the choice: each is a choice and a
/// runner-up, which is right in 45 % of the cases where the choice is wrong.
fn tree(decoding: u32, answers: &[(u32, f32)]) -> DraftedRow {
    let mut row = DraftedRow { decoding, ..DraftedRow::default() };
    for &(parent, probability) in answers {
        let depth = parent.checked_sub(1).map_or(0, |draft| row.places[draft as usize].depth + 1);
        for rank in 0..2 {
            row.proposals.push(Proposal { probability, finite: true, ..Proposal::default() });
            row.places.push(DraftPlace { parent, depth, rank });
        }
    }
    row
}

/// What each row may have verified, of rows in steps of trees.
fn chosen(rows: &[DraftedRow], allowed: &[u32]) -> Vec<Vec<usize>> {
    let view = StepView { decoding: vec![row(100, None); rows.len()], ..StepView::default() };
    let drafts = allowed.to_vec();
    let granted = StepDecision { drafts, shape: DraftShape::Tree, ..StepDecision::default() };
    let mut chosen = Vec::new();
    let step = Step { view: &view, granted: &granted };
    of_shape(Shape::Tree).choose(step, rows, &mut Scratch::default(), &mut chosen);
    chosen.iter().map(|set| set.iter().collect()).collect()
}

/// Which open drafts of a row are fed.
fn fed(row_of_drafts: &DraftedRow, open: &[u32], granted: StepDecision) -> Vec<u32> {
    let view = StepView { decoding: vec![row(100, None)], ..StepView::default() };
    let open: Vec<OpenDraft> = open.iter().map(|&draft| OpenDraft { row: 0, draft }).collect();
    let mut keep = Vec::new();
    let (rows, step) = (std::slice::from_ref(row_of_drafts), Step { view: &view, granted: &granted });
    of_shape(Shape::Tree).expand(step, rows, &open, &mut Scratch::default(), &mut keep);
    keep.iter().map(|&index| open[index as usize].draft).collect()
}

fn tree_of(drafts: u32) -> StepDecision {
    StepDecision { drafts: vec![drafts], shape: DraftShape::Tree, ..StepDecision::default() }
}

#[test]
fn a_step_drafts_the_shape_that_is_configured_and_auto_tries_both() {
    let view = StepView { decoding: vec![row(100, None)], ..StepView::default() };
    let shape = |policy: &SpecServe| {
        let decision = policy.plan(&view, &mut Scratch::default());
        assert!(decision.drafts[0] > 0);
        decision.shape
    };
    assert_eq!(shape(&of_shape(Shape::Chain)), DraftShape::Chain);
    assert_eq!(shape(&of_shape(Shape::Tree)), DraftShape::Tree);
    let mut learner = SpecServeLearner::new(
        gpu_like().cost_model().unwrap(),
        None,
        SpecServeOptions { shape: Shape::Auto, ..SpecServeOptions::default() },
    );
    let world = World { requests: 1, ..World::default() };
    let mut run = Run::new(&world, 5);
    let shapes: Vec<_> = (0..32)
        .map(|_| {
            let report = run.step(&learner);
            learner.observe(&report);
            report.granted.shape
        })
        .collect();
    let trees = shapes.iter().filter(|&&shape| shape == DraftShape::Tree).count();
    assert_eq!(trees, 16, "{shapes:?}");
}

#[test]
fn the_likeliest_drafts_are_verified_whatever_their_path() {
    // survival: 0.9 and 0.045; behind the first 0.45 and 0.2
    let sure = tree(0, &[(0, 0.9), (1, 0.5)]);
    assert_eq!(chosen(std::slice::from_ref(&sure), &[3]), [[0, 2, 3]]);
    // survival: 0.3 and 0.315; behind the second 0.28 and 0.014
    let unsure = tree(0, &[(0, 0.3), (2, 0.9)]);
    assert_eq!(chosen(std::slice::from_ref(&unsure), &[1]), [[1]], "the runner-up is likelier");
    assert_eq!(chosen(std::slice::from_ref(&unsure), &[3]), [[0, 1, 2]]);
}

#[test]
fn rows_have_their_own_bounds_and_what_has_no_chance_is_left_out() {
    let certain = tree(0, &[(0, 1.0), (1, 1.0)]);
    let other = DraftedRow { decoding: 1, ..tree(0, &[(0, 0.9), (1, 0.5)]) };
    assert_eq!(chosen(&[certain, other], &[8, 1]), [vec![0, 2], vec![0]]);
}

#[test]
fn an_unusable_answer_and_what_follows_it_are_not_verified() {
    let mut broken = tree(0, &[(0, 0.9), (1, 0.9), (3, 0.9)]);
    broken.proposals[2].finite = false;
    assert_eq!(chosen(&[broken], &[8])[0], [0, 1, 3]);
}

#[test]
fn what_follows_a_likely_draft_is_drafted_and_what_follows_an_unlikely_one_is_not() {
    assert_eq!(fed(&tree(0, &[(0, 0.95)]), &[0, 1], tree_of(8)), [0]);
    assert_eq!(fed(&tree(0, &[(0, 0.45)]), &[0, 1], tree_of(8)), [0, 1]);
    assert_eq!(fed(&tree(0, &[(0, 0.02)]), &[0], tree_of(8)), [0; 0]);
}

#[test]
fn nothing_is_drafted_that_would_only_push_out_better_drafts() {
    // survival: 0.5 and 0.225 at the root, then 0.25, 0.11, 0.25 and 0.11
    let wide = tree(0, &[(0, 0.5), (1, 0.5)]);
    assert!(fed(&wide, &[2, 3], tree_of(8)).contains(&2));
    let full = tree(0, &[(0, 0.99), (1, 0.99), (3, 0.99), (5, 0.05)]);
    assert_eq!(fed(&full, &[6, 7], tree_of(3)), [0; 0], "three drafts are likelier than any that follows");
}

#[test]
fn a_probe_follows_the_choices_and_verifies_all() {
    let probe = StepDecision { intent: Intent::Probe, ..tree_of(2) };
    assert_eq!(fed(&tree(0, &[(0, 0.2)]), &[0, 1], probe), [0]);
}
