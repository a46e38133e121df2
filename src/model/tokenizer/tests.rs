use std::sync::LazyLock;

use proptest::prelude::*;

use super::Tokenizer;
use crate::model::{Mismatch, ModelSource, load, same_token_list};
use crate::protocol::{ModelRole, TokenId};

static TINY: LazyLock<Tokenizer> = LazyLock::new(|| {
    load(&ModelSource::EmbeddedTiny, ModelRole::Target).expect("the embedded target loads").tokenizer
});

/// A token of [`FALLBACK`] that no test writes into a text.
const SEPARATOR: char = '\u{10fffd}';

/// First byte token of [`FALLBACK`].
const FIRST_BYTE: TokenId = 8;

/// A SentencePiece-like tokenizer: spaces are `▁`, unknown characters fall back to bytes,
/// the first space is dropped when decoding.
static FALLBACK: LazyLock<Tokenizer> = LazyLock::new(|| {
    let mut vocab = serde_json::Map::new();
    let bytes = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>"));
    let letters = ["<unk>", "<s>", "▁", "a", "b", "é", "▁a", "ab"].map(str::to_owned);
    let separator = SEPARATOR.to_string();
    for (id, token) in letters.into_iter().chain(bytes).chain([separator]).enumerate() {
        vocab.insert(token, id.into());
    }
    let json = serde_json::json!({
        "version": "1.0",
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null,
        "added_tokens": [{"id": 1, "content": "<s>", "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false, "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true,
                  "byte_fallback": true, "vocab": vocab, "merges": [["▁", "a"], ["a", "b"]]}
    });
    Tokenizer::from_json(json.to_string().as_bytes()).expect("the tokenizer is well formed")
});

fn streamed(tokenizer: &Tokenizer, tokens: &[TokenId], skip_special: bool) -> Vec<String> {
    streamed_after(tokenizer, &[], tokens, skip_special)
}

fn streamed_after(
    tokenizer: &Tokenizer,
    prompt: &[TokenId],
    tokens: &[TokenId],
    skip_special: bool,
) -> Vec<String> {
    let mut decoder = tokenizer.stream_decoder_after(prompt, skip_special);
    let mut parts = Vec::new();
    for token in tokens {
        let mut part = String::new();
        decoder.push(*token, &mut part);
        parts.push(part);
    }
    let mut last = String::new();
    decoder.finish(&mut last);
    parts.push(last);
    parts
}

#[test]
fn the_golden_prompts_encode_to_the_golden_ids_and_back() {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../../../assets/tiny/golden.json")).expect("golden.json is JSON");
    let cases = golden["cases"].as_array().expect("golden.json has cases");
    assert!(!cases.is_empty());
    for case in cases {
        let prompt = case["prompt"].as_str().expect("a prompt");
        let add_special_tokens = case["add_special_tokens"].as_bool().expect("how to encode it");
        let expected = ids_of(&case["prompt_ids"]);
        let ids = TINY.encode(prompt, add_special_tokens).expect("the prompt encodes");
        assert_eq!(ids, expected, "{prompt:?}");
        let bare = &ids[usize::from(add_special_tokens)..];
        assert_eq!(TINY.decode(bare, false).expect("it decodes"), prompt);
        let greedy_text = case["greedy_text"].as_str().expect("a text");
        let greedy = ids_of(&case["greedy_ids"]);
        assert_eq!(streamed(&TINY, &greedy, true).concat(), greedy_text);
    }
}

fn ids_of(json: &serde_json::Value) -> Vec<TokenId> {
    serde_json::from_value(json.clone()).expect("a list of ids")
}

#[test]
fn a_special_token_written_in_the_text_is_one_token() {
    let ids = TINY.encode("<|im_start|>user\nhi<|im_end|>", false).expect("it encodes");
    assert_eq!((ids.first(), ids.last()), (Some(&1), Some(&2)));
    assert_eq!(TINY.decode(&ids, true).expect("it decodes"), "user\nhi");
    assert_eq!(streamed(&TINY, &ids, true).concat(), "user\nhi");
    assert_eq!(streamed(&TINY, &ids, false).concat(), "<|im_start|>user\nhi<|im_end|>");
}

#[test]
fn a_character_of_several_tokens_comes_out_whole_with_its_last_token() {
    let ids = TINY.encode("🦉", false).expect("it encodes");
    assert!(ids.len() > 1, "the test needs a character that takes several tokens");
    let parts = streamed(&TINY, &ids, true);
    let (owl, before) = parts[..ids.len()].split_last().expect("there are parts");
    assert_eq!(owl, "🦉");
    assert!(before.iter().all(String::is_empty));
}

#[test]
fn a_stream_that_ends_inside_a_character_flushes_one_replacement_character() {
    let ids = TINY.encode("ok 🦉", false).expect("it encodes");
    let cut = &ids[..ids.len() - 1];
    let parts = streamed(&TINY, cut, true);
    let (last, before) = parts.split_last().expect("there are parts");
    assert_eq!(before.concat(), "ok ");
    assert_eq!(last, "\u{fffd}");
}

#[test]
fn ids_that_are_no_tokens_leave_nothing() {
    let beyond = TINY.list_len() as TokenId;
    assert_eq!(TINY.token(beyond), None);
    for skip_special in [true, false] {
        assert_eq!(streamed(&TINY, &[beyond, TokenId::MAX], skip_special).concat(), "");
    }
    assert!(TINY.is_silent(beyond));
}

#[test]
fn the_bytes_of_tokens_spell_the_text_and_special_tokens_have_none() {
    let bytes = FALLBACK.fixed_bytes(400).expect("spaces are marked");
    let of = |token: &str| &bytes[FALLBACK.token_id(token).expect("a token") as usize];
    assert_eq!((&of("▁a")[..], &of("ab")[..], &of("é")[..]), (&b" a"[..], &b"ab"[..], "é".as_bytes()));
    assert_eq!((&of("<0xE2>")[..], &of("<s>")[..]), (&[0xE2][..], &[][..]));
    assert_eq!(bytes[399], b"", "an id that is no token");
    let spelled = |text: &str| -> Vec<u8> {
        let tokens = FALLBACK.encode(text, false).expect("it encodes");
        tokens.iter().flat_map(|&token| bytes[token as usize].clone()).collect()
    };
    // the tokenizer puts a space before the first word
    assert_eq!(spelled("ab é 漢"), " ab é 漢".as_bytes());
}

#[test]
fn a_truncation_left_in_the_file_does_not_cut_prompts() {
    let ids = FALLBACK.encode("a a a a a a a a", false).expect("it encodes");
    assert_eq!(ids.len(), 8);
}

#[test]
fn a_byte_fallback_character_comes_out_whole_and_bad_bytes_are_not_held_back() {
    let byte = |value: u8| FALLBACK.token_id(&format!("<0x{value:02X}>")).expect("a byte token");
    let euro = [byte(0xE2), byte(0x82), byte(0xAC)];
    assert_eq!(streamed(&FALLBACK, &euro, true), ["", "", "€", ""]);
    let bad = [byte(0xFF); 9];
    let parts = streamed(&FALLBACK, &bad, true);
    assert_eq!(parts.concat(), "\u{fffd}".repeat(9));
    assert!(!parts[4].is_empty() || !parts[3].is_empty(), "bad bytes came out only at the end: {parts:?}");
}

/// Text of tokens by the library's own decoder, asked for each character by itself: it would
/// replace every byte of a run in which one byte is bad.
fn decoded_by_character(tokens: &[TokenId]) -> String {
    let separator = FALLBACK.token_id(&SEPARATOR.to_string()).expect("a token");
    let byte = |token: TokenId| token.checked_sub(FIRST_BYTE).and_then(|byte| u8::try_from(byte).ok());
    let mut separated = Vec::new();
    for run in tokens.chunk_by(|a, b| byte(*a).is_some() == byte(*b).is_some()) {
        let bytes: Vec<u8> = run.iter().filter_map(|&token| byte(token)).collect();
        if bytes.is_empty() || std::str::from_utf8(&bytes).is_ok() {
            separated.extend_from_slice(run);
            continue;
        }
        let mut rest = run;
        for chunk in bytes.utf8_chunks() {
            for unit in [chunk.valid().len()].into_iter().chain(chunk.invalid().iter().map(|_| 1)) {
                let (now, later) = rest.split_at(unit);
                separated.extend_from_slice(now);
                separated.push(separator);
                rest = later;
            }
        }
    }
    // a separator in front would keep the space that the decoder drops there
    let leading = separated.iter().take_while(|&&token| token == separator).count();
    FALLBACK.decode(&separated[leading..], true).expect("it decodes").replace(SEPARATOR, "")
}

#[test]
fn text_after_a_byte_that_belongs_to_no_character_is_not_lost() {
    let byte = |value: u8| FIRST_BYTE + TokenId::from(value);
    let word = FALLBACK.token_id("▁a").expect("a token");
    let tokens = [byte(0xE4), byte(0xBD), byte(0xA0), byte(0xE5), word, word, word];
    assert_eq!(streamed(&FALLBACK, &tokens, true).concat(), "你\u{fffd} a a a");
    assert_eq!(decoded_by_character(&tokens), "你\u{fffd} a a a");
}

#[test]
fn a_completion_keeps_the_space_before_its_first_word_and_a_text_by_itself_drops_it() {
    let word = FALLBACK.token_id("▁a").expect("a token");
    let prompt = FALLBACK.encode("b b", false).expect("it encodes");
    assert_eq!(streamed_after(&FALLBACK, &prompt, &[word, word], true).concat(), " a a");
    assert_eq!(streamed(&FALLBACK, &[word, word], true).concat(), "a a");
    let only_special = [FALLBACK.token_id("<s>").expect("a token")];
    assert_eq!(streamed_after(&FALLBACK, &only_special, &[word], true).concat(), "a");
}

#[test]
fn only_special_tokens_are_found_by_their_text() {
    assert_eq!(TINY.special_token_id("<|im_end|>"), Some(2));
    assert_eq!(TINY.special_token_id("the"), None);
    assert_eq!(TINY.special_token_id("<|im_end|>x"), None);
}

#[test]
fn special_tokens_that_are_to_be_shown_are_part_of_the_text() {
    let [shown, hidden] = ["<|im_end|>", "<|im_start|>"].map(|text| TINY.token_id(text).expect("a token"));
    let mut decoder = TINY.stream_decoder(true).showing(vec![shown]);
    let mut text = String::new();
    for token in [hidden, shown, hidden] {
        decoder.push(token, &mut text);
    }
    decoder.finish(&mut text);
    assert_eq!(text, "<|im_end|>");
    let only_special = FALLBACK.token_id("<s>").expect("a token");
    let mut decoder = FALLBACK.stream_decoder(true).showing(vec![only_special]);
    decoder.push(only_special, &mut text);
    decoder.finish(&mut text);
    assert_eq!(text, "<|im_end|><s>");
}

#[test]
fn the_window_of_a_long_stream_stays_short() {
    let ids = FALLBACK.encode(&"ab a é€ b".repeat(200), false).expect("it encodes");
    let mut decoder = FALLBACK.stream_decoder(true);
    let mut text = String::new();
    for id in &ids {
        decoder.push(*id, &mut text);
        assert!(decoder.held_tokens() <= 16);
    }
}

#[test]
fn a_broken_tokenizer_is_an_error_with_a_reason() {
    for json in ["", "{}", "{\"model\": {\"type\": \"Unheard\"}}", "[1, 2"] {
        let error = Tokenizer::from_json(json.as_bytes()).expect_err("it is broken");
        assert!(error.to_string().contains("cannot be read"), "{error}");
    }
}

#[test]
fn a_mismatch_names_the_first_differing_token() {
    let mut json: serde_json::Value =
        serde_json::from_str(include_str!("../../../assets/tiny/draft/tokenizer.json")).expect("JSON");
    let vocab = json["model"]["vocab"].as_object_mut().expect("a vocabulary");
    let (changed, id) = vocab.iter().nth(1000).map(|(t, id)| (t.clone(), id.clone())).expect("a token");
    vocab.remove(&changed);
    vocab.insert("changed".to_owned(), id.clone());
    let merges = json["model"]["merges"].as_array_mut().expect("merges");
    merges.clear();
    let other = Tokenizer::from_json(json.to_string().as_bytes()).expect("it is well formed");
    let mismatch = same_token_list(&TINY, &other).expect_err("a token differs");
    let id = id.as_u64().expect("an id") as TokenId;
    let expected = Mismatch::Token { id, target: Some(changed.clone()), draft: Some("changed".to_owned()) };
    assert_eq!(mismatch, expected);
    assert!(mismatch.to_string().contains(&format!("id {id}: {changed:?} in the target, \"changed\"")));
}

#[test]
fn a_longer_list_is_a_mismatch_of_sizes() {
    let mut json: serde_json::Value =
        serde_json::from_str(include_str!("../../../assets/tiny/draft/tokenizer.json")).expect("JSON");
    let len = TINY.list_len();
    json["model"]["vocab"]["one more"] = len.into();
    let longer = Tokenizer::from_json(json.to_string().as_bytes()).expect("it is well formed");
    assert_eq!(same_token_list(&TINY, &longer), Err(Mismatch::Size { target: len, draft: len + 1 }));
    assert_eq!(same_token_list(&longer, &longer), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn any_bytes_and_words_stream_as_the_librarys_decoder_reads_them(
        tokens in prop::collection::vec(
            prop_oneof![
                1 => 2_u32..FIRST_BYTE,
                2 => (FIRST_BYTE + 0x80)..(FIRST_BYTE + 0x100),
                1 => FIRST_BYTE..(FIRST_BYTE + 0x80),
                1 => prop::sample::select(vec![0x20, 0xE2, 0x82, 0xAC, 0xC3, 0xA9]).prop_map(|b| FIRST_BYTE + b),
            ],
            0..24,
        ),
    ) {
        prop_assert_eq!(streamed(&FALLBACK, &tokens, true).concat(), decoded_by_character(&tokens));
    }

    /// Ids below 260 are the special tokens and single bytes: mostly broken UTF-8.
    #[test]
    fn streaming_single_bytes_gives_the_text_of_all_at_once(
        tokens in prop::collection::vec(3_u32..260, 0..64),
    ) {
        let whole = TINY.decode(&tokens, true).expect("it decodes");
        prop_assert_eq!(streamed(&TINY, &tokens, true).concat(), whole);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_prompt_and_its_completion_are_the_text_of_both(text in "[ab é🦉漢]{1,40}", cut in 0_usize..40) {
        let ids = FALLBACK.encode(&text, false).expect("any text encodes");
        let (prompt, output) = ids.split_at(cut.min(ids.len()));
        let before = FALLBACK.decode(prompt, true).expect("it decodes");
        // a prompt that ends inside a character has no text that the completion could continue
        prop_assume!(!before.contains(char::REPLACEMENT_CHARACTER));
        let whole = FALLBACK.decode(&ids, true).expect("it decodes");
        prop_assert_eq!(before + &streamed_after(&FALLBACK, prompt, output, true).concat(), whole);
    }

    #[test]
    fn streaming_any_tokens_gives_the_text_of_all_at_once(
        tokens in prop::collection::vec(0_u32..4100, 0..64),
        skip_special in any::<bool>(),
    ) {
        let whole = TINY.decode(&tokens, skip_special).expect("it decodes");
        prop_assert_eq!(streamed(&TINY, &tokens, skip_special).concat(), whole);
    }

    #[test]
    fn any_text_survives_encoding_and_streaming(text in "\\PC{0,40}[\\sé🦉漢\u{301}]{0,8}") {
        let ids = TINY.encode(&text, false).expect("any text encodes");
        let parts = streamed(&TINY, &ids, false);
        let replaced = parts.iter().any(|part| part.contains(char::REPLACEMENT_CHARACTER));
        prop_assert!(!replaced || text.contains(char::REPLACEMENT_CHARACTER));
        prop_assert_eq!(parts.concat(), text);
    }

    #[test]
    fn any_text_survives_streaming_with_byte_fallback(text in "[ab é🦉漢]{0,40}") {
        let ids = FALLBACK.encode(&text, false).expect("any text encodes");
        let whole = FALLBACK.decode(&ids, false).expect("it decodes");
        prop_assert_eq!(streamed(&FALLBACK, &ids, false).concat(), whole);
    }
}
