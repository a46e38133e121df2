//! Tokens per target step of chains and trees at the same verify budget: counts, no times.
//!
//! The embedded pair and its heads answer the prompts of the tests one at a time on the CPU. `specserve`
//! plans with the prices of an 8B on an H100, where a step of a few more rows costs next to nothing. At
//! most `budget` drafts are verified per step. `fixed` is the longest chain, which accepts the most that
//! any chain can, and `eagle2` a tree that uses the whole budget as well; `specserve` stops where the next
//! draft does not pay for its time. In parentheses, the drafts verified per step.
//!
//! Run: `cargo bench --bench trees`

#[path = "../tests/common/mod.rs"]
mod common;

use common::{cpu_for, drafters, embedded, play, request};
use specserve::model::{DraftHead, DraftWeights};
use specserve::policy::registry::{PolicyName, PolicyOptions, build};
use specserve::policy::specserve::Shape;
use specserve::protocol::{GenerationRequest, ModelRole, SamplingParams};
use specserve::timing::cost_model::HeadTerms;
use specserve::timing::profile::Profile;

const BUDGETS: [u32; 4] = [4, 8, 12, 16];
const TEMPERATURES: [f32; 3] = [0.0, 0.6, 1.0];
const REQUESTS: usize = 24;
const OUTPUT_TOKENS: u32 = 160;
const BLOCKS: u32 = 512;

/// What a policy did per target step.
struct PerStep {
    tokens: f64,
    verified: f64,
}

fn main() {
    println!(
        "{:<16} {:>4} {:>6}   fixed          eagle2         chain          tree           eagle2 / fixed  tree / best chain",
        "drafter", "t", "budget"
    );
    for (name, drafter) in drafters() {
        let profile = profile_with(&drafter);
        for temperature in TEMPERATURES {
            for budget in BUDGETS {
                let fixed = PolicyName::Fixed(budget);
                let rows = [
                    (fixed, Shape::Chain),
                    (PolicyName::Eagle2(budget), Shape::Chain),
                    (PolicyName::SpecServe, Shape::Chain),
                    (PolicyName::SpecServe, Shape::Tree),
                ];
                let seen = rows
                    .map(|(policy, shape)| measure(&drafter, &profile, (policy, shape, budget), temperature));
                let best = seen[0].tokens.max(seen[2].tokens);
                let cells: Vec<String> =
                    seen.iter().map(|one| format!("{:5.3} ({:4.1})  ", one.tokens, one.verified)).collect();
                println!(
                    "{name:<16} {temperature:>4} {budget:>6}   {} {:<15.3} {:.3}",
                    cells.concat(),
                    seen[1].tokens / seen[0].tokens,
                    seen[3].tokens / best
                );
            }
        }
    }
}

fn measure(
    drafter: &DraftWeights,
    profile: &Profile,
    (policy, shape, budget): (PolicyName, Shape, u32),
    temperature: f32,
) -> PerStep {
    let mut options = PolicyOptions::default();
    options.specserve.draft_tokens_max = budget;
    options.specserve.shape = shape;
    let learner = build(policy, Some(profile), &options).expect("the policy builds");
    let sampling = SamplingParams { temperature, ..SamplingParams::greedy() };
    let requests: Vec<GenerationRequest> =
        (0..REQUESTS).map(|number| request(number, OUTPUT_TOKENS, sampling.clone())).collect();
    let target = embedded(ModelRole::Target);
    let mut executor = cpu_for(budget, target, Some(drafter.clone()), BLOCKS);
    let played = play(&mut executor, learner, 1, &requests);
    let stats = || played.values().map(|one| &one.summary.speculation);
    let steps = f64::from(stats().map(|one| one.steps).sum::<u32>());
    // the first token of an output comes with its prompt
    let tokens: usize = played.values().map(|one| one.tokens.len() - 1).sum();
    PerStep {
        tokens: tokens as f64 / steps,
        verified: f64::from(stats().map(|one| one.verified).sum::<u32>()) / steps,
    }
}

/// The prices of an 8B and a 160M on an H100, or of a head of the kind at hand.
fn profile_with(drafter: &DraftWeights) -> Profile {
    let text = include_str!("../profiles/h100-8b-160m.toml");
    let mut profile = Profile::from_toml(text).expect("the profile parses");
    if let DraftWeights::Head(head) = drafter {
        let drafts_per_call = if let DraftHead::Block(head) = head { head.drafts() as u32 } else { 1 };
        let draft = profile.draft.as_mut().expect("it has a draft model");
        draft.head = Some(HeadTerms { drafts_per_call, state_token_us: 0.1 });
    }
    profile
}
