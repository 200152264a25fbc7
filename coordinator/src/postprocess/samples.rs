//! Tokenizers for tests: a real one, and tiny ones of the other kinds.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};
use tokenizers::Tokenizer;

/// CodeGen's tokenizer directory.
pub(crate) fn codegen_directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/codegen-tokenizer")
}

/// CodeGen's tokenizer (byte-level, 50,295 tokens).
pub(crate) fn codegen() -> Arc<Tokenizer> {
    static TOKENIZER: LazyLock<Arc<Tokenizer>> =
        LazyLock::new(|| Arc::new(Tokenizer::from_file(codegen_directory().join("tokenizer.json")).unwrap()));
    TOKENIZER.clone()
}

/// One token per byte of GPT-2's table, in no merges, then `added` as special tokens.
pub(crate) fn byte_level(added: &[&str]) -> Tokenizer {
    let mut alphabet: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let vocabulary = alphabet.into_iter().map(String::from).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    tokenizer(vocabulary, added, &json!({"pre_tokenizer": byte_level, "decoder": byte_level}))
}

/// Like Llama's: 256 byte tokens, the mark, some letters, then `added` as special tokens.
pub(crate) fn sentencepiece(added: &[&str]) -> Tokenizer {
    tokenizer(
        marked_vocabulary(),
        added,
        &json!({
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ]},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
        }),
    )
}

/// Like T5's.
pub(crate) fn metaspace() -> Tokenizer {
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    tokenizer(marked_vocabulary(), &["</s>"], &json!({"pre_tokenizer": metaspace, "decoder": metaspace}))
}

fn marked_vocabulary() -> Vec<String> {
    let bytes = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>"));
    let pieces = ["▁", "▁▁▁", "▁a", "a", "b", "c▁d", "é", "日"];
    bytes.chain(pieces.map(str::to_owned)).collect()
}

fn tokenizer(vocabulary: Vec<String>, added: &[&str], parts: &Value) -> Tokenizer {
    let first_added = vocabulary.len();
    let ids: serde_json::Map<String, Value> =
        vocabulary.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    let added: Vec<Value> = added
        .iter()
        .enumerate()
        .map(|(at, content)| {
            json!({
                "id": first_added + at, "content": content, "special": true,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let model = json!({
        "type": "BPE", "vocab": ids, "merges": [], "byte_fallback": true, "ignore_merges": false,
        "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": false,
    });
    let mut description = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": model,
    });
    for (name, part) in parts.as_object().unwrap() {
        description[name] = part.clone();
    }
    Tokenizer::from_bytes(description.to_string()).unwrap()
}
