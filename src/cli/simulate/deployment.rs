//! The deployment to simulate: explicit options, then the configuration, then built-in defaults.

use std::path::{Path, PathBuf};

use super::classes;
use super::deployment_args::DeploymentArgs;
use crate::cli::error::CliError;
use crate::config::{Config, KvSize, PoolBlocks, SchedulerConfig, SloConfig};
use crate::pacing::{LateAction, ServiceOrder};
use crate::policy::registry::{PolicyName, PolicyOptions};
use crate::policy::specserve::{Shape, SpecServeOptions};
use crate::scheduler::SchedulerLimits;
use crate::simulate::SimulatedClass;
use crate::simulate::virtual_executor::drafter_of;
use crate::timing::cost_model::LatencyModel;

const RUNNING_MAX_DEFAULT: u32 = 256;
const QUEUE_MAX_DEFAULT: u32 = 100_000;
const PREFILL_CHUNK_DEFAULT: u32 = 512;
const DRAFT_MAX_DEFAULT: u32 = 8;
const KV_BLOCKS_DEFAULT: u32 = 20_000;

/// What the command line and the configuration say together.
#[derive(Clone, Debug, PartialEq)]
pub struct Deployment {
    /// Profiles; at least one.
    pub profiles: Vec<PathBuf>,
    /// Policies to run; at least one.
    pub policies: Vec<PolicyName>,
    /// The order of service of all policies; `None`: what each is served with by default.
    order: Option<ServiceOrder>,
    /// What becomes of late requests in the order slo.
    pub late: LateAction,
    /// Classes of requests, most urgent first.
    pub classes: Vec<SimulatedClass>,
    /// Most requests that wait.
    pub queue_requests_max: u32,
    /// Most draft tokens per request and step.
    draft_tokens_max: u32,
    shape: Shape,
    running_requests_max: u32,
    prefill_chunk_tokens_max: u32,
    batch_tokens_max: u32,
    pools: PoolBlocks,
}

impl Deployment {
    /// Reads the configuration, if one is given, and lets the options go first.
    ///
    /// # Errors
    /// [`CliError::Config`]: a configuration that the daemon would refuse, with its own message.
    /// [`CliError::Arguments`]: no profile, or classes that do not fit together.
    pub fn of(args: &DeploymentArgs) -> Result<Deployment, CliError> {
        let config = args.config.as_deref().map(Config::read).transpose()?;
        Deployment::resolve(args, config.as_ref())
    }

    fn resolve(args: &DeploymentArgs, config: Option<&Config>) -> Result<Deployment, CliError> {
        let scheduler = config.map(|config| &config.scheduler);
        let speculation = config.map(|config| &config.speculation);
        let running_requests_max = args
            .running_max
            .or(scheduler.map(|scheduler| scheduler.running_requests_max))
            .unwrap_or(RUNNING_MAX_DEFAULT);
        let prefill_chunk_tokens_max = args
            .prefill_chunk
            .or(scheduler.map(|scheduler| scheduler.prefill_chunk_tokens_max))
            .unwrap_or(PREFILL_CHUNK_DEFAULT);
        let draft_tokens_max = args
            .draft_max
            .or(speculation.map(|speculation| speculation.draft_tokens_max))
            .unwrap_or(DRAFT_MAX_DEFAULT);
        let batch_tokens_max = config
            .map(|config| config.executor.batch_tokens_max)
            .filter(|&tokens| running_requests_max < tokens && prefill_chunk_tokens_max <= tokens)
            // room for the drafts of all requests in addition to a full prefill chunk
            .unwrap_or(prefill_chunk_tokens_max + running_requests_max * (1 + draft_tokens_max));
        Ok(Deployment {
            profiles: profiles(args, config)?,
            policies: policies(args, config),
            order: args.scheduler.or(scheduler.map(|scheduler| scheduler.order)),
            late: late(args, config),
            classes: classes::resolve(&args.classes, args.slo, config.map(|config| &config.slo))?,
            queue_requests_max: args
                .queue_max
                .or(scheduler.map(|scheduler| scheduler.queue_requests_max))
                .unwrap_or(QUEUE_MAX_DEFAULT),
            draft_tokens_max,
            shape: args.shape.or(speculation.map(|speculation| speculation.shape)).unwrap_or_default(),
            running_requests_max,
            prefill_chunk_tokens_max,
            batch_tokens_max,
            pools: pools(args, config),
        })
    }

    /// The order of service under a policy.
    pub fn order(&self, policy: PolicyName) -> ServiceOrder {
        self.order.unwrap_or(SchedulerConfig::order_with(policy))
    }

    /// The profile of a command that takes only one.
    ///
    /// # Errors
    /// [`CliError::Arguments`]: several.
    pub fn profile(&self) -> Result<&Path, CliError> {
        match &self.profiles[..] {
            [profile] => Ok(profile),
            _ => Err(CliError::Arguments("several --profile need --matrix".to_owned())),
        }
    }

    /// Options of the policies.
    pub fn policy_options(&self) -> PolicyOptions {
        let specserve = SpecServeOptions {
            draft_tokens_max: self.draft_tokens_max,
            shape: self.shape,
            ..SpecServeOptions::default()
        };
        PolicyOptions { specserve, ..PolicyOptions::default() }
    }

    /// Bounds of the scheduler, with the drafter of a profile or without.
    pub fn limits(&self, draft: Option<&LatencyModel>) -> SchedulerLimits {
        let drafter = draft.map(|draft| drafter_of(draft, self.pools.draft));
        let block_tokens = drafter.as_ref().map(|needs| needs.block_tokens).filter(|&tokens| tokens > 0);
        SchedulerLimits {
            running_requests_max: self.running_requests_max,
            prefill_chunk_tokens_max: self.prefill_chunk_tokens_max,
            batch_tokens_max: self.batch_tokens_max,
            draft_tokens_max: self.draft_tokens_max.min(block_tokens.unwrap_or(u32::MAX)),
            sampled_rows_max: u32::MAX,
            target_blocks: self.pools.target,
            drafter,
        }
    }
}

fn profiles(args: &DeploymentArgs, config: Option<&Config>) -> Result<Vec<PathBuf>, CliError> {
    if !args.profiles.is_empty() {
        return Ok(args.profiles.clone());
    }
    match config.and_then(|config| config.speculation.profile.clone()) {
        Some(profile) => Ok(vec![profile]),
        None => Err(CliError::Arguments(
            "--profile is missing, and the configuration has no speculation.profile".to_owned(),
        )),
    }
}

fn policies(args: &DeploymentArgs, config: Option<&Config>) -> Vec<PolicyName> {
    if !args.policies.is_empty() {
        return args.policies.clone();
    }
    vec![config.map(|config| config.speculation.policy).unwrap_or_default()]
}

/// A file with the order fifo has to leave late requests their turn; that is no choice for the
/// order slo.
fn late(args: &DeploymentArgs, config: Option<&Config>) -> LateAction {
    let (fifo, slo) = (SloConfig::late_in(ServiceOrder::Fifo), SloConfig::late_in(ServiceOrder::Slo));
    let is_choice = |config: &&Config| config.scheduler.order == ServiceOrder::Slo || config.slo.late != fifo;
    args.late.or(config.filter(is_choice).map(|config| config.slo.late)).unwrap_or(slo)
}

/// The KV pools. A size in memory says nothing here, where no model tells how large a block is.
fn pools(args: &DeploymentArgs, config: Option<&Config>) -> PoolBlocks {
    let both = |blocks| PoolBlocks { target: blocks, draft: blocks };
    match (args.kv_blocks, config.map(|config| config.kv.size)) {
        (Some(blocks), _) => both(blocks),
        (None, Some(KvSize::Blocks { target, draft })) => PoolBlocks { target, draft },
        (None, _) => both(KV_BLOCKS_DEFAULT),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::protocol::{DrafterNeeds, Micros, Slo};
    use crate::timing::cost_model::{HeadTerms, LatencyTerms};

    /// A deployment that differs from every default.
    const FILE: &str = r#"
        [target]
        model = "embedded:tiny"
        [draft]
        model = "embedded:tiny"
        [executor]
        batch_tokens_max = 3000
        [kv]
        target_blocks = 700
        draft_blocks = 600
        [scheduler]
        order = "slo"
        running_requests_max = 20
        queue_requests_max = 30
        prefill_chunk_tokens_max = 400
        [slo]
        default_class = "batch"
        late = "queue"
        [[slo.classes]]
        name = "chat"
        ttft_ms = 300
        tpot_ms = 20
        [[slo.classes]]
        name = "batch"
        ttft_ms = 9000
        weight = 0.25
        [speculation]
        policy = "smartspec"
        draft_tokens_max = 5
        profile = "measured.toml"
    "#;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        deployment: DeploymentArgs,
    }

    fn resolved(line: &str, file: &str) -> Deployment {
        let line = format!("simulate --config file {line}");
        let line = Line::try_parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{error}"));
        let config = Config::parse(file).unwrap_or_else(|error| panic!("{error}"));
        Deployment::resolve(&line.deployment, Some(&config)).expect("it fits together")
    }

    fn class(
        name: &str,
        share: f64,
        ttft_ms: Option<u64>,
        tpot_ms: Option<u64>,
        weight: f32,
    ) -> SimulatedClass {
        let slo = Slo { ttft: ttft_ms.map(Micros::from_millis), tpot: tpot_ms.map(Micros::from_millis) };
        SimulatedClass { weight, ..SimulatedClass::new(name, share, slo) }
    }

    #[test]
    fn what_the_line_leaves_out_is_the_files() {
        let expected = Deployment {
            profiles: vec!["measured.toml".into()],
            policies: vec![PolicyName::SmartSpec],
            order: Some(ServiceOrder::Slo),
            late: LateAction::Queue,
            classes: vec![class("batch", 1.0, Some(9000), None, 0.25)],
            queue_requests_max: 30,
            draft_tokens_max: 5,
            shape: Shape::Chain,
            running_requests_max: 20,
            prefill_chunk_tokens_max: 400,
            batch_tokens_max: 3000,
            pools: PoolBlocks { target: 700, draft: 600 },
        };
        assert_eq!(resolved("", FILE), expected);
        let draft = |head| {
            let terms = LatencyTerms { head, ..LatencyTerms::negligible() };
            LatencyModel::new(terms).expect("valid")
        };
        let limits = |head| expected.limits(Some(&draft(head)));
        let needs = limits(None).drafter;
        assert_eq!(needs, Some(DrafterNeeds { branches: true, ..DrafterNeeds::kv_cache(600) }));
        let head = |drafts_per_call| Some(HeadTerms { drafts_per_call, state_token_us: 0.0 });
        let (chain, block) = (limits(head(1)), limits(head(3)));
        assert_eq!((chain.draft_tokens_max, block.draft_tokens_max), (5, 3));
        let needs = |limits: SchedulerLimits| limits.drafter.expect("a head");
        let (chain, block) = (needs(chain), needs(block));
        assert!(chain.reads_hidden_states() && chain.kv_blocks == 0 && block.reads_hidden_states());
        assert_eq!((chain.block_tokens, block.block_tokens), (0, 3));
        assert_eq!(expected.limits(None).drafter, None);
    }

    #[test]
    fn an_explicit_option_wins_over_the_file() {
        let line = "--profile p.toml --policy none --policy fixed:2 --scheduler fifo --late reject --slo ttft_ms=100,tpot_ms=8 \
                    --queue-max 3 --draft-max 2 --running-max 10 --prefill-chunk 256 --kv-blocks 50";
        let expected = Deployment {
            profiles: vec!["p.toml".into()],
            policies: vec![PolicyName::None, PolicyName::Fixed(2)],
            order: Some(ServiceOrder::Fifo),
            late: LateAction::Reject,
            classes: vec![class("batch", 1.0, Some(100), Some(8), 0.25)],
            queue_requests_max: 3,
            draft_tokens_max: 2,
            shape: Shape::Chain,
            running_requests_max: 10,
            prefill_chunk_tokens_max: 256,
            batch_tokens_max: 3000,
            pools: PoolBlocks { target: 50, draft: 50 },
        };
        assert_eq!(resolved(line, FILE), expected);
    }

    #[test]
    fn a_class_of_the_line_is_the_files_class_except_for_what_it_says_itself() {
        let line = "--class chat:share=0.5,ttft_ms=100 --class batch:share=0.25 --class other:share=0.25";
        let weighed = resolved("--class batch:share=1,weight=3", FILE).classes;
        assert_eq!(weighed, [class("batch", 1.0, Some(9000), None, 3.0)]);
        let expected = [
            class("chat", 0.5, Some(100), Some(20), 1.0),
            class("batch", 0.25, Some(9000), None, 0.25),
            class("other", 0.25, None, None, 1.0),
        ];
        assert_eq!(resolved(line, FILE).classes, expected);
    }

    #[test]
    fn a_batch_has_room_for_more_than_the_file_allows_where_the_line_asks_for_it() {
        let tokens = |line| resolved(line, FILE).limits(None).batch_tokens_max;
        assert_eq!(tokens("--running-max 1024"), 3000);
        assert_eq!(tokens("--prefill-chunk 3001"), 3001 + 20 * 6);
        let small = FILE.replace("batch_tokens_max = 3000", "batch_tokens_max = 400");
        assert_eq!(resolved("--running-max 400", &small).limits(None).batch_tokens_max, 400 + 400 * 6);
    }

    #[test]
    fn late_requests_are_demoted_unless_the_line_or_a_choice_of_the_file_says_otherwise() {
        let late = |line, order: &str, action: &str| {
            let file = FILE.replace("order = \"slo\"", order).replace("late = \"queue\"", action);
            resolved(line, &file).late
        };
        let (fifo, slo) = ("order = \"fifo\"", "order = \"slo\"");
        assert_eq!(late("", slo, ""), LateAction::Demote);
        assert_eq!(late("", slo, "late = \"queue\""), LateAction::Queue);
        assert_eq!(late("--scheduler slo", fifo, ""), LateAction::Demote);
        assert_eq!(late("--scheduler slo", fifo, "late = \"reject\""), LateAction::Reject);
        assert_eq!(late("--late queue", slo, "late = \"reject\""), LateAction::Queue);
    }

    #[test]
    fn a_size_in_memory_is_no_number_of_blocks() {
        let file =
            FILE.replace("target_blocks = 700", "memory_mib_max = 64").replace("draft_blocks = 600", "");
        assert_eq!(resolved("", &file).limits(None).target_blocks, KV_BLOCKS_DEFAULT);
    }

    #[test]
    fn without_a_file_each_policy_has_its_own_order_and_a_profile_must_be_named() {
        let line = |text: &str| Line::try_parse_from(text.split_whitespace());
        assert!(line("simulate").is_err());
        let args = line("simulate --profile p.toml").unwrap_or_else(|error| panic!("{error}")).deployment;
        let deployment = Deployment::of(&args).expect("it fits together");
        assert_eq!(deployment.policies, [PolicyName::SpecServe]);
        assert_eq!(deployment.order(PolicyName::SpecServe), ServiceOrder::Slo);
        assert_eq!(deployment.order(PolicyName::None), ServiceOrder::Fifo);
        assert_eq!(deployment.classes, [class("default", 1.0, None, None, 1.0)]);

        let args = line("simulate --config file").unwrap_or_else(|error| panic!("{error}")).deployment;
        let error = Deployment::resolve(&args, Some(&Config::default_tiny())).expect_err("no profile");
        assert!(error.to_string().contains("no speculation.profile"), "{error}");
    }
}
