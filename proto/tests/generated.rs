//! The generated code is committed, so that a build needs neither `protoc` nor a build script.
//! This makes it again and compares.

use expect_test::expect_file;
use prost_types::field_descriptor_proto::Type;

/// Fails when src/generated is not what client.proto and outcome.proto say; `UPDATE_EXPECT=1` repairs:
/// after a change of the schema, before the conversion uses it.
#[test]
fn generated_code_is_fresh() {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut files =
        protox::compile(["client.proto", "outcome.proto"], [root]).expect("the schema compiles");
    // A string and a byte string are the same on the wire. As bytes they are lent from the frame
    // instead of copied, and the conversion checks them once, with the other rules of the value.
    for message in files.file.iter_mut().flat_map(|file| &mut file.message_type) {
        for field in &mut message.field {
            if field.r#type() == Type::String {
                field.set_type(Type::Bytes);
            }
        }
    }
    let out = tempfile::tempdir().unwrap();
    prost_build::Config::new().bytes(["."]).out_dir(out.path()).compile_fds(files).unwrap();
    let code = std::fs::read_to_string(out.path().join("conclave.rs")).unwrap();
    expect_file!["../src/generated/conclave.rs"].assert_eq(&code);
}
