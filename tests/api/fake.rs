//! A scripted backend behind the real API on a real Unix socket.
//!
//! Its tokens are bytes; token 256 ends an output.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use specserve::api::{
    ApiCounters, ApiLimits, ApiRules, Backend, BackendInfo, BoundSocket, ChatFeatures, ClassInfo,
    Conversation, Health, SamplingDefaults, Server, SocketOptions, TcpListeners, TextDecoder, TextError,
    TextModel, router,
};
use specserve::grammar::{GrammarCompiler, GrammarError, GrammarSource, Vocabulary};
use specserve::protocol::{
    AdmissionError, Clock, FinishReason, Generation, Micros, MonotonicClock, RequestFailure, RequestId,
    RequestSummary, RequestTimes, Slo, SpeculationStats, Submission, TokenConstraint, TokenEvent, TokenId,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub const MODEL: &str = "fake/bytes";
pub const END: TokenId = 256;
/// What the tokenizer calls [`END`]; never part of a decoded text.
pub const END_TEXT: &str = "<|end|>";
pub const CONTEXT: u32 = 256;
pub const ADVICE: &str = "raise the.key in the server's configuration";

/// What the backend does with every request.
#[derive(Clone, Debug)]
pub enum Script {
    /// Sends these bursts, then the terminal event that they imply.
    Answer(Vec<Vec<TokenId>>),
    /// Sends these bursts, then waits to be cancelled, finished or failed.
    Hang(Vec<Vec<TokenId>>),
    /// Sends these bursts, then fails.
    Fail(Vec<Vec<TokenId>>, RequestFailure),
    /// Rejects the request.
    Refuse(AdmissionError),
}

impl Script {
    /// The text in bursts of `size` tokens, then the end token.
    pub fn text(text: &str, size: usize) -> Script {
        let tokens: Vec<TokenId> = text.bytes().map(TokenId::from).chain([END]).collect();
        Script::Answer(tokens.chunks(size).map(<[TokenId]>::to_vec).collect())
    }
}

/// A call of the API to the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendCall {
    Submitted(RequestId),
    Cancelled(RequestId),
    Finished(RequestId),
}

pub struct FakeBackend {
    info: BackendInfo,
    clock: MonotonicClock,
    text: ByteText,
    script: Mutex<Script>,
    health: Mutex<Health>,
    submissions: Mutex<Vec<Submission>>,
    open: Mutex<Vec<(RequestId, UnboundedSender<TokenEvent>)>>,
    told: UnboundedSender<BackendCall>,
}

impl FakeBackend {
    pub fn play(&self, script: Script) {
        *self.script.lock().unwrap() = script;
    }

    pub fn set_health(&self, health: Health) {
        *self.health.lock().unwrap() = health;
    }

    pub fn last_submission(&self) -> Submission {
        self.submissions.lock().unwrap().last().expect("nothing was submitted").clone()
    }

    /// Tokens of prompt that the last output's text goes on with.
    pub fn last_continued(&self) -> usize {
        *self.text.continued.lock().unwrap().last().expect("nothing was decoded")
    }

    pub fn submissions(&self) -> usize {
        self.submissions.lock().unwrap().len()
    }

    /// Ends every hanging request.
    pub fn end_all(&self, event: TokenEvent) {
        for (_, events) in self.open.lock().unwrap().drain(..) {
            let _ = events.send(event.clone());
        }
    }

    fn end(&self, id: RequestId, event: TokenEvent) {
        self.open.lock().unwrap().retain(|(open, events)| {
            if *open == id {
                let _ = events.send(event.clone());
            }
            *open != id
        });
    }

    fn run(&self, id: RequestId, submission: &Submission, events: UnboundedSender<TokenEvent>) {
        let (bursts, hangs, failure) = match self.script.lock().unwrap().clone() {
            Script::Answer(bursts) => (bursts, false, None),
            Script::Hang(bursts) => (bursts, true, None),
            Script::Fail(bursts, failure) => (bursts, false, Some(failure)),
            Script::Refuse(_) => unreachable!("refused requests don't run"),
        };
        let (mut left, mut reason) = (submission.max_tokens as usize, FinishReason::Length);
        for mut burst in bursts {
            burst.truncate(left);
            if let Some(end) = burst.iter().position(|token| submission.stop_tokens.contains(token)) {
                burst.truncate(end + 1);
                reason = FinishReason::Stop;
            }
            left -= burst.len();
            if !burst.is_empty() {
                let _ = events.send(TokenEvent::Tokens(burst));
            }
            if left == 0 || reason == FinishReason::Stop {
                break;
            }
        }
        match failure {
            Some(failure) => drop(events.send(TokenEvent::Failed(failure))),
            None if hangs => self.open.lock().unwrap().push((id, events)),
            None => drop(events.send(finished(reason))),
        }
    }
}

/// A terminal event with statistics that tests compare.
pub fn finished(reason: FinishReason) -> TokenEvent {
    let summary = RequestSummary {
        prompt_tokens: 3,
        cached_tokens: 2,
        output_tokens: 5,
        times: RequestTimes {
            arrival: Micros(1_000),
            scheduled: Micros(3_000),
            first_token: Micros(11_000),
            last_token: Micros(17_000),
        },
        speculation: SpeculationStats {
            steps: 2,
            drafted: 6,
            verified: 5,
            accepted: 3,
            steps_by_accepted: vec![1, 0, 0, 1],
        },
        preemptions: 1,
    };
    TokenEvent::Finished { reason, summary }
}

impl Backend for FakeBackend {
    async fn submit(&self, submission: Submission) -> Result<Generation, AdmissionError> {
        if let Script::Refuse(refusal) = self.script.lock().unwrap().clone() {
            return Err(refusal);
        }
        let (sender, events) = unbounded_channel();
        let id = RequestId(self.submissions() as u64);
        self.submissions.lock().unwrap().push(submission.clone());
        self.run(id, &submission, sender);
        let _ = self.told.send(BackendCall::Submitted(id));
        Ok(Generation { id, events })
    }

    fn cancel(&self, id: RequestId) {
        self.end(id, TokenEvent::Failed(RequestFailure::Cancelled));
        let _ = self.told.send(BackendCall::Cancelled(id));
    }

    fn finish(&self, id: RequestId) {
        self.end(id, finished(FinishReason::Stop));
        let _ = self.told.send(BackendCall::Finished(id));
    }

    fn now(&self) -> Micros {
        self.clock.now()
    }

    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn text(&self) -> &dyn TextModel {
        &self.text
    }

    fn health(&self) -> Health {
        self.health.lock().unwrap().clone()
    }

    async fn state(&self) -> serde_json::Value {
        serde_json::json!({"fake": true})
    }

    async fn metrics(&self) -> String {
        "fake_total 1\n".to_owned()
    }
}

/// Its decoders note how many tokens of prompt they go on with.
#[derive(Default)]
struct ByteText {
    continued: Mutex<Vec<usize>>,
}

impl TextModel for ByteText {
    /// The special token is added to the text "special" only, so that others are easy to compare.
    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, TextError> {
        let special = (add_special && text.contains("special")).then_some(END);
        Ok(special.into_iter().chain(text.bytes().map(TokenId::from)).collect())
    }

    fn decode(&self, tokens: &[TokenId]) -> Result<String, TextError> {
        let bytes: Vec<u8> = tokens.iter().filter_map(|&token| u8::try_from(token).ok()).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn special_tokens(&self) -> Vec<(String, String)> {
        vec![("bos_token".to_owned(), "<s>".to_owned())]
    }

    fn chat_template(&self) -> Option<String> {
        Some("{{ messages }}".to_owned())
    }

    fn decoder(&self, prompt: &[TokenId], _shown: &[&str]) -> Box<dyn TextDecoder> {
        self.continued.lock().unwrap().push(prompt.len());
        Box::new(ByteDecoder(Vec::new()))
    }

    fn special_token(&self, text: &str) -> Option<TokenId> {
        (text == END_TEXT).then_some(END)
    }

    /// Tools and variables, then `role: content` and further fields of each message, a line each.
    fn render_chat(&self, conversation: &Conversation) -> Result<String, TextError> {
        let more = |fields: &serde_json::Map<String, serde_json::Value>| match fields.is_empty() {
            true => String::new(),
            false => serde_json::Value::Object(fields.clone()).to_string(),
        };
        let lines = conversation
            .messages
            .iter()
            .map(|message| format!("{}: {}{}\n", message.role, message.content, more(&message.more)));
        let tools = conversation.tools.list.iter().map(|tool| format!("tool: {tool}\n"));
        let mut text =
            tools.collect::<String>() + &more(&conversation.variables) + &lines.collect::<String>();
        if conversation.continue_final_message {
            text.pop();
        }
        Ok(if conversation.add_generation_prompt { text + "assistant: " } else { text })
    }

    fn constraint(
        &self,
        source: &GrammarSource,
        stop_tokens: &[TokenId],
    ) -> Result<Arc<dyn TokenConstraint>, GrammarError> {
        compiler()?.compile(source, stop_tokens)
    }
}

fn compiler() -> Result<GrammarCompiler, GrammarError> {
    let bytes = (0..=END).map(|token| u8::try_from(token).ok().into_iter().collect()).collect();
    GrammarCompiler::new(Vocabulary { bytes, end_tokens: vec![END], encode: None })
}

struct ByteDecoder(Vec<u8>);

impl TextDecoder for ByteDecoder {
    fn push(&mut self, token: TokenId) -> String {
        self.0.push(token as u8);
        match std::str::from_utf8(&self.0) {
            Ok(_) => String::from_utf8(std::mem::take(&mut self.0)).unwrap(),
            Err(_) => String::new(),
        }
    }

    fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.0)).into_owned()
    }
}

/// A running API server over a scripted backend.
pub struct Fixture {
    pub engine: Arc<FakeBackend>,
    pub server: Server,
    pub socket: PathBuf,
    told: UnboundedReceiver<BackendCall>,
    _directory: tempfile::TempDir,
}

impl Fixture {
    pub async fn start(script: Script) -> Fixture {
        Fixture::with_limits(script, ApiLimits { body_bytes_max: 64 << 10, ..ApiLimits::default() }).await
    }

    pub async fn with_limits(script: Script, limits: ApiLimits) -> Fixture {
        Fixture::with(script, limits, ApiRules::default(), None).await
    }

    /// The model's chats have these properties.
    pub async fn with_chat(script: Script, chat: ChatFeatures) -> Fixture {
        let info = BackendInfo { chat, context_tokens_max: 4096, ..info() };
        Fixture::over(info, script, ApiLimits::default(), ApiRules::default(), None).await
    }

    pub async fn with_rules(script: Script, rules: ApiRules) -> Fixture {
        Fixture::with(script, ApiLimits::default(), rules, None).await
    }

    /// Only these user ids may connect to the socket.
    pub async fn for_users(script: Script, users: Vec<u32>) -> Fixture {
        Fixture::with(script, ApiLimits::default(), ApiRules::default(), Some(users)).await
    }

    async fn with(script: Script, limits: ApiLimits, rules: ApiRules, users: Option<Vec<u32>>) -> Fixture {
        Fixture::over(info(), script, limits, rules, users).await
    }

    async fn over(
        info: BackendInfo,
        script: Script,
        limits: ApiLimits,
        rules: ApiRules,
        users: Option<Vec<u32>>,
    ) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let (told, listener) = unbounded_channel();
        let engine = Arc::new(FakeBackend {
            info,
            clock: MonotonicClock::start(),
            text: ByteText::default(),
            script: Mutex::new(script),
            health: Mutex::default(),
            submissions: Mutex::default(),
            open: Mutex::default(),
            told,
        });
        let bound = BoundSocket::bind(&SocketOptions { path: socket.clone(), mode: 0o600, users }).unwrap();
        let any_port = Some("127.0.0.1:0".parse().unwrap());
        let tcp = TcpListeners { http: any_port, admin: any_port };
        let counters = Arc::<ApiCounters>::default();
        let router = router(engine.clone(), limits.clone(), rules, counters.clone());
        let server = Server::start(router, bound, tcp, &limits, counters).await.unwrap();
        Fixture { engine, server, socket, told: listener, _directory: directory }
    }

    /// Waits for the API's next call to the backend.
    pub async fn told(&mut self) -> BackendCall {
        let next = tokio::time::timeout(Duration::from_secs(30), self.told.recv());
        next.await.expect("the backend was not called").expect("the backend is alive")
    }
}

fn info() -> BackendInfo {
    let millis =
        |ttft, tpot| Slo { ttft: Some(Micros::from_millis(ttft)), tpot: Some(Micros::from_millis(tpot)) };
    BackendInfo {
        model: MODEL.to_owned(),
        loaded_unix_s: 1_700_000_000,
        context_tokens_max: CONTEXT,
        context_advice: Some(ADVICE.to_owned()),
        vocab_size: 257,
        end_tokens: vec![END],
        sampling: SamplingDefaults { temperature: 0.7, ..SamplingDefaults::default() },
        max_tokens_default: 100,
        draft_tokens_max: 4,
        chat: ChatFeatures::default(),
        classes: vec![
            ClassInfo { name: "interactive".to_owned(), slo: millis(500, 50), weight: 2.5 },
            ClassInfo { name: "batch".to_owned(), slo: Slo::default(), weight: 0.0 },
        ],
        default_class: 0,
    }
}
