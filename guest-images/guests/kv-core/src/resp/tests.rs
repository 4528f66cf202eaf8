use super::*;

/// The words of a request and its length.
type Request = (Vec<Vec<u8>>, usize);

fn parse(input: &[u8]) -> Result<Option<Request>, ProtocolError> {
    let mut input = input.to_vec();
    let mut parser = Parser::default();
    Ok(match parser.parse(&mut input)? {
        Parsed::Incomplete => None,
        Parsed::Request { len } => Some((parser.arguments(&input).from(0).map(<[u8]>::to_vec).collect(), len)),
    })
}

fn request(words: &[&[u8]], len: usize) -> Result<Option<Request>, ProtocolError> {
    Ok(Some((words.iter().map(|word| word.to_vec()).collect(), len)))
}

#[test]
fn arrays_of_bulk_strings_are_requests() {
    assert_eq!(parse(b"*1\r\n$4\r\nPING\r\n"), request(&[b"PING"], 14));
    assert_eq!(
        parse(b"*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\nrest"),
        request(&[b"GET", b"a\r\nb"], 23)
    );
    assert_eq!(parse(b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n"), request(&[b"GET", b""], 19));
    for nothing in ["*0\r\n", "*-1\r\n", "*-9\r\n"] {
        assert_eq!(parse(nothing.as_bytes()), request(&[], nothing.len()), "{nothing}");
    }
}

#[test]
fn inline_commands_are_split_and_unquoted() {
    assert_eq!(parse(b"PING\r\n"), request(&[b"PING"], 6));
    assert_eq!(parse(b"  SET  a\tb \nrest"), request(&[b"SET", b"a", b"b"], 12));
    assert_eq!(parse(b"\r\n"), request(&[], 2));
    assert_eq!(
        parse(b"SET \"a b\" 'c \\' d' \"\\x41\\n\\\"\\\\\" x\"y\" \"\" '\\n'\n"),
        request(&[b"SET", b"a b", b"c ' d", b"A\n\"\\", b"xy", b"", b"\\n"], 45)
    );
    assert_eq!(parse(b"a \"\\xzz\"\n"), request(&[b"a", b"xzz"], 9));
    for open in ["a \"b\n", "a 'b\n", "a \"b\\\n", "\"a\"b\n", "'a'b\n", "a \"\\\n"] {
        assert_eq!(parse(open.as_bytes()), Err(ProtocolError::Quotes), "{open}");
    }
}

#[test]
fn a_request_may_come_in_any_pieces() {
    let whole: &[&[u8]] = &[
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\n12\r\n3\r\n",
        b"SET k 'x y'\r\n",
        b"\n",
    ];
    for request in whole {
        let mut parser = Parser::default();
        let mut input = Vec::new();
        for (count, &byte) in request.iter().enumerate() {
            if count > 0 {
                assert_eq!(
                    parser.parse(&mut input),
                    Ok(Parsed::Incomplete),
                    "after {count} bytes of {request:?}"
                );
            }
            input.push(byte);
        }
        assert_eq!(parser.parse(&mut input), Ok(Parsed::Request { len: request.len() }));
        let found: Vec<Vec<u8>> = parser.arguments(&input).from(0).map(<[u8]>::to_vec).collect();
        assert_eq!(Ok(Some((found, request.len()))), parse(request));
    }
}

#[test]
fn requests_at_their_bounds_are_accepted_and_beyond_refused() {
    let count = |count: usize| format!("*{count}\r\n");
    assert_eq!(parse(count(MAX_ARGUMENTS).as_bytes()), Ok(None));
    assert_eq!(parse(count(MAX_ARGUMENTS + 1).as_bytes()), Err(ProtocolError::Count));
    let bulk = |len: usize| format!("*1\r\n${len}\r\n");
    assert_eq!(parse(bulk(MAX_BULK).as_bytes()), Ok(None));
    assert_eq!(parse(bulk(MAX_BULK + 1).as_bytes()), Err(ProtocolError::BulkLength));

    let full = [
        bulk(MAX_BULK).replace("*1", "*4").into_bytes(),
        vec![b'x'; MAX_BULK],
        b"\r\n".to_vec(),
    ]
    .concat();
    let rest = MAX_REQUEST - full.len() - "$524000\r\n".len();
    let with = |len: usize| [full.clone(), format!("${len}\r\n").into_bytes()].concat();
    assert_eq!(parse(&with(rest)), Ok(None));
    assert_eq!(parse(&with(rest + 1)), Err(ProtocolError::BulkLength));

    let line = |first: &str, len: usize| format!("{first}{}", "1".repeat(len - first.len())).into_bytes();
    for (first, error) in [
        ("a", ProtocolError::InlineTooLong),
        ("*", ProtocolError::CountLineTooLong),
        ("*1\r\n$", ProtocolError::BulkLineTooLong),
    ] {
        let before = first.len() - 1;
        assert_eq!(parse(&line(first, before + MAX_INLINE)), Ok(None));
        assert_eq!(parse(&line(first, before + MAX_INLINE + 1)), Err(error));
    }
    assert_eq!(
        parse(&[line("a", MAX_INLINE + 1), b"\n".to_vec()].concat()),
        Err(ProtocolError::InlineTooLong)
    );
}

#[test]
fn malformed_requests_are_refused() {
    let cases: [(&[u8], ProtocolError); 13] = [
        (b"*\r\n", ProtocolError::Count),
        (b"*x\r\n", ProtocolError::Count),
        (b"*1x\r\n", ProtocolError::Count),
        (b"*99999999999999999999\r\n", ProtocolError::Count),
        (b"*1\r\n:1\r\n", ProtocolError::ExpectedBulk(b':')),
        (b"*1\r\n\r\n", ProtocolError::ExpectedBulk(b'\r')),
        (b"*1\r\n$\r\n", ProtocolError::BulkLength),
        (b"*1\r\n$-1\r\n", ProtocolError::BulkLength),
        (b"*1\r\n$1 \r\n", ProtocolError::BulkLength),
        (b"*1\r\n$18446744073709551615\r\n", ProtocolError::BulkLength),
        (b"*1\r\n$1\r\nabc", ProtocolError::BulkEnd),
        (b"POST / HTTP/1.1\r\n", ProtocolError::Http),
        (b"Host: kv\r\n", ProtocolError::Http),
    ];
    for (input, error) in cases {
        assert_eq!(parse(input), Err(error), "{}", input.escape_ascii());
    }
    assert_eq!(
        ProtocolError::ExpectedBulk(b'\r').to_string(),
        "expected '$', got '\\r'"
    );
}

#[test]
fn no_input_makes_the_parser_panic_or_lie() {
    let mut random = 0x1234_5678_9abc_def1_u64;
    let alphabet = b"*$-0123456789\r\n\"'\\x ab";
    for _ in 0..50_000 {
        let mut input = Vec::new();
        let mut parser = Parser::default();
        for _ in 0..12 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let bytes = random.to_le_bytes();
            input.extend(
                bytes[..usize::from(bytes[7] % 7)]
                    .iter()
                    .map(|&at| alphabet[usize::from(at) % alphabet.len()]),
            );
            match parser.parse(&mut input) {
                Ok(Parsed::Incomplete) => {}
                Ok(Parsed::Request { len }) => {
                    assert!(len <= input.len());
                    assert!(
                        parser
                            .arguments(&input)
                            .from(0)
                            .all(|argument| argument.len() <= input.len())
                    );
                    break;
                }
                Err(_) => break,
            }
        }
    }
}
