//! Rules across several keys.

use super::problem::ConfigProblem;
use super::reader::Problems;
use super::{Config, DraftConfig};
use crate::model::{DraftKind, KIND, ModelRef};
use crate::pacing::{LateAction, ServiceOrder};
use crate::policy::registry::PolicyName;
use crate::policy::specserve::Shape;

/// Reports every violated rule across keys.
pub(super) fn check(config: &Config, problems: &mut Problems) {
    let executor = &config.executor;
    let scheduler = &config.scheduler;
    at_most(
        problems,
        ("scheduler.running_requests_max", scheduler.running_requests_max),
        ("executor.batch_sequences_max", executor.batch_sequences_max),
    );
    // Each running request decodes at least one token per step, and prompts need room as well.
    let (running, tokens) = (scheduler.running_requests_max, executor.batch_tokens_max);
    if running >= tokens
        && !problems.mention(&["scheduler.running_requests_max", "executor.batch_tokens_max"])
    {
        let what = format!("leaves no room for a prompt in executor.batch_tokens_max = {tokens}");
        let advice = "lower it, or raise executor.batch_tokens_max";
        problems.add("scheduler.running_requests_max", Some(running.to_string()), what, advice);
    }
    at_most(
        problems,
        ("scheduler.prefill_chunk_tokens_max", scheduler.prefill_chunk_tokens_max),
        ("executor.batch_tokens_max", executor.batch_tokens_max),
    );
    check_draft(config, problems);
    check_policy(config, problems);
    check_late(config, problems);
}

/// What works, but not as an operator would expect.
pub(super) fn warnings(config: &Config) -> Vec<ConfigProblem> {
    let (connections, scheduler) = (config.server.connections_max, &config.scheduler);
    let requests = scheduler.running_requests_max as usize + scheduler.queue_requests_max as usize;
    let unreachable = (connections < requests).then(|| ConfigProblem {
        path: "server.connections_max".to_owned(),
        value: Some(connections.to_string()),
        what: format!(
            "is less than scheduler.running_requests_max + scheduler.queue_requests_max = {requests}: further \
             requests are refused while the queue has room"
        ),
        advice: "raise it, or leave it out".to_owned(),
    });
    unreachable.into_iter().collect()
}

/// Reports `left > right`, unless one of the two has been reported already.
fn at_most(problems: &mut Problems, left: (&str, u32), right: (&str, u32)) {
    if left.1 <= right.1 || problems.mention(&[left.0, right.0]) {
        return;
    }
    let what = format!("is more than {} = {}", right.0, right.1);
    problems.add(left.0, Some(left.1.to_string()), what, format!("lower it, or raise {}", right.0));
}

/// Settings of heads mean nothing for a model. Whether a directory holds one is only known at startup,
/// unless `draft.kind` says so.
fn check_draft(config: &Config, problems: &mut Problems) {
    let Some(DraftConfig::Model { model, settings }) = &config.draft else { return };
    if problems.mention(&["draft", "draft.model", KIND]) {
        return;
    }
    let (kind, reason) = match (model, settings.kind) {
        (ModelRef::EmbeddedTiny, given) => {
            if let Some(head) = given.filter(|&kind| kind != DraftKind::Model) {
                let value = Some(format!("\"{}\"", head.name()));
                let what = format!("is not what draft.model = \"{model}\" is: a model");
                problems.add(KIND, value, what, "set it to \"model\", or remove it");
            }
            (DraftKind::Model, format!("\"{model}\" is a model"))
        }
        (_, Some(kind)) => (kind, format!("{KIND} is \"{}\"", kind.name())),
        (_, None) => return,
    };
    for misplaced in settings.misplaced(kind) {
        let what = format!("only {} have it, and {reason}", misplaced.whose);
        problems.add(misplaced.key, Some(misplaced.value), what, "remove it");
    }
}

/// Only an order by objectives can let a late request wait behind those that are not.
fn check_late(config: &Config, problems: &mut Problems) {
    let (order, late) = (config.scheduler.order, config.slo.late);
    let demotes_in_turn = order == ServiceOrder::Fifo && late == LateAction::Demote;
    if demotes_in_turn && !problems.mention(&["scheduler.order", "speculation.policy"]) {
        let what = "cannot be done in the order \"fifo\", which serves every request in its turn";
        let advice = "set scheduler.order to \"slo\", or this to \"queue\" or \"reject\"";
        problems.add("slo.late", Some(format!("\"{}\"", late.name())), what, advice);
    }
}

fn check_policy(config: &Config, problems: &mut Problems) {
    const POLICY: &str = "speculation.policy";
    const PROFILE_KEYS: [&str; 2] = ["speculation.profile", "speculation.profile_at_start"];
    const PROFILE_ADVICE: &str = "set speculation.profile, or remove speculation.profile_at_start";
    const ORDER: &str = "scheduler.order";
    let policy = config.speculation.policy;
    let value = || Some(format!("\"{policy}\""));
    if problems.mention(&[POLICY]) {
        return;
    }
    if policy.needs_draft_model() && config.draft.is_none() && !problems.mention(&["draft"]) {
        let advice = "add a [draft] section with its model, or set the policy to \"none\"";
        problems.add(POLICY, value(), "requires a draft model", advice);
    }
    let speculation = &config.speculation;
    let planless = speculation.profile.is_none() && !speculation.profile_at_start;
    if planless && !problems.mention(&PROFILE_KEYS) {
        let what = "requires a profile and none is configured";
        if policy.needs_profile() {
            problems.add(POLICY, value(), what, PROFILE_ADVICE);
        } else if config.needs_profile() && !problems.mention(&[ORDER]) {
            let order = format!("\"{}\"", config.scheduler.order.name());
            problems.add(ORDER, Some(order), what, PROFILE_ADVICE);
        }
    }
    if speculation.shape != Shape::Chain && policy != PolicyName::SpecServe {
        let what = format!("the policy \"{policy}\" drafts chains only");
        let shape = Some(format!("\"{}\"", speculation.shape.name()));
        problems.add("speculation.shape", shape, what, "remove it, or set the policy to \"specserve\"");
    }
    let max = speculation.draft_tokens_max;
    let tokens = policy.draft_tokens().unwrap_or(0);
    if tokens > max && !problems.mention(&["speculation.draft_tokens_max"]) {
        let what = format!("drafts {tokens} tokens and speculation.draft_tokens_max is {max}");
        problems.add(POLICY, value(), what, "lower it, or raise speculation.draft_tokens_max");
    }
}
