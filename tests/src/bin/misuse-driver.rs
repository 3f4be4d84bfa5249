//! Uses the stand-in for NVIDIA's driver as the CUDA backend must not, and prints what each call answered: one line
//! `what error-code` a mistake. For the test that such mistakes show.
//!
//! `misuse-driver LIBRARY PTX_FILE`: the file's first entry is `add`'s.

#[cfg(target_os = "linux")]
mod calls {
    use std::ffi::{CString, c_char, c_int, c_void};
    use std::ptr::{null_mut, without_provenance_mut};

    unsafe extern "C" {
        fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
        fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }

    const RTLD_NOW: c_int = 2;

    /// The library. Every function of it is called with five words at most: what it does not take it does not look at.
    #[derive(Clone, Copy)]
    pub struct Driver(*mut c_void);

    // SAFETY: a handle of the loader's, which any thread may use.
    unsafe impl Send for Driver {}

    pub type Word = *mut c_void;

    pub fn word(value: usize) -> Word {
        without_provenance_mut(value)
    }

    impl Driver {
        pub fn open(path: &str) -> Driver {
            let name = CString::new(path).expect("a path");
            // SAFETY: opens a library that only defines functions.
            let library = unsafe { dlopen(name.as_ptr(), RTLD_NOW) };
            assert!(!library.is_null(), "{path} cannot be loaded");
            Driver(library)
        }

        /// Calls a function whose parameters are all integers or pointers.
        pub fn call<const N: usize>(self, name: &str, words: [Word; N]) -> c_int {
            let c_name = CString::new(name).expect("a name");
            // SAFETY: looks a name up.
            let function = unsafe { dlsym(self.0, c_name.as_ptr()) };
            assert!(!function.is_null(), "{name} is not there");
            let mut all = [null_mut(); 5];
            all[..N].copy_from_slice(&words);
            // SAFETY: the driver's functions take up to five integers or pointers in registers and give an integer back;
            // pointers are to live memory of the kind that each takes, or refused by it.
            unsafe {
                let function: unsafe extern "C" fn(Word, Word, Word, Word, Word) -> c_int =
                    std::mem::transmute(function);
                function(all[0], all[1], all[2], all[3], all[4])
            }
        }

        /// The same, which must succeed, and puts what it makes into its first parameter.
        pub fn make<const N: usize>(self, name: &str, words: [Word; N]) -> Word {
            let mut made: Word = null_mut();
            let mut all = [null_mut(); 5];
            all[0] = (&raw mut made).cast();
            all[1..=N].copy_from_slice(&words);
            assert_eq!(self.call(name, all), 0, "{name}");
            made
        }
    }
}

/// `CUlaunchConfig`.
#[repr(C)]
#[cfg(target_os = "linux")]
struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    stream: calls::Word,
    attributes: calls::Word,
    attribute_count: u32,
}

#[cfg(target_os = "linux")]
fn main() {
    use calls::{Driver, Word, word};
    use std::ptr::null_mut;

    let args: Vec<String> = std::env::args().collect();
    let driver = Driver::open(&args[1]);
    let ptx = std::ffi::CString::new(std::fs::read(&args[2]).expect("PTX")).expect("no NUL inside");
    let none: Word = null_mut();
    let say = |what: &str, code: i32| println!("{what} {code}");
    let mut out: Word = null_mut();
    let out: Word = (&raw mut out).cast();

    say("allocate-before-init", driver.call("cuMemAlloc_v2", [out, word(16)]));
    assert_eq!(driver.call("cuInit", [none]), 0);
    let context = driver.make("cuDevicePrimaryCtxRetain", [none]);
    say("allocate-without-context", driver.call("cuMemAlloc_v2", [out, word(16)]));
    assert_eq!(driver.call("cuCtxSetCurrent", [context]), 0);
    let elsewhere = std::thread::spawn(move || {
        let mut out: Word = null_mut();
        driver.call("cuMemAlloc_v2", [(&raw mut out).cast(), word(16)])
    });
    say("allocate-on-another-thread", elsewhere.join().expect("no panic"));

    let stream = driver.make("cuStreamCreate", [word(1)]);
    let memory = driver.make("cuMemAlloc_v2", [word(4096)]);
    let inside = memory.wrapping_byte_add(8);
    say("free-unknown", driver.call("cuMemFree_v2", [inside]));
    say("fill-outside", driver.call("cuMemsetD8Async", [inside, none, word(4096), stream]));
    say("synchronize-null-stream", driver.call("cuStreamSynchronize", [none]));
    say("destroy-unknown-event", driver.call("cuEventDestroy_v2", [stream]));

    // Page-locked memory before and after its copy was waited for: 0 only then.
    let pinned = driver.make("cuMemHostAlloc", [word(4), none]);
    assert_eq!(driver.call("cuMemsetD8Async", [memory, none, word(4096), stream]), 0);
    assert_eq!(driver.call("cuMemcpyDtoHAsync_v2", [pinned, memory, word(4), stream]), 0);
    // SAFETY: four bytes, allocated above; the stand-in writes them on this thread alone.
    let read = || unsafe { pinned.cast::<i32>().read_volatile() };
    say("early-read", i32::from(read() == 0));
    say("free-memory-of-queued-copy", driver.call("cuMemFreeHost", [pinned]));
    assert_eq!(driver.call("cuStreamSynchronize", [stream]), 0);
    say("late-read", i32::from(read() == 0));

    let load = |image: Word| driver.call("cuModuleLoadDataEx", [out, image, none, none, none]);
    say("load-no-ptx", load(c"ELF".as_ptr().cast_mut().cast()));
    let text = ptx.to_str().expect("text");
    for (what, from, to) in [
        ("load-newer-ptx", ".version 8.2", ".version 9.9"),
        ("load-newer-chip", ".target sm_90", ".target sm_100"),
        ("load-other-parameters", ".param .u32 add_param_3", ".param .u64 add_param_3"),
        ("load-fewer-parameters", "add_param_2,\n\t.param .u32 add_param_3", "add_param_2"),
    ] {
        assert!(text.contains(from), "{from}");
        let changed = std::ffi::CString::new(text.replacen(from, to, 1)).expect("no NUL inside");
        say(what, load(changed.as_ptr().cast_mut().cast()));
    }
    let get = |text: &std::ffi::CStr| {
        let image = text.as_ptr().cast_mut().cast();
        let module = driver.make("cuModuleLoadDataEx", [image, none, none, none]);
        say(
            "unknown-function",
            driver.call("cuModuleGetFunction", [out, module, c"no".as_ptr().cast_mut().cast()]),
        );
        driver.make("cuModuleGetFunction", [module, c"add".as_ptr().cast_mut().cast()])
    };
    let function = get(&ptx);

    // add(a, b, y, n): y = a + b.
    let launch_of =
        |function: Word, blocks: u32, threads: u32, shared_bytes: u32, target: Word, overlap: bool| {
            // The attribute that lets a launch begin before the one in front has ended.
            let mut attribute = [0u32; 18];
            (attribute[0], attribute[2]) = (6, 1);
            let config = Config {
                grid: [blocks, 1, 1],
                block: [threads, 1, 1],
                shared_bytes,
                stream,
                attributes: (&raw mut attribute).cast(),
                attribute_count: u32::from(overlap),
            };
            let (source, mut target, elems) = (memory, target, 8u32);
            let mut params: [Word; 4] = [
                (&raw const source).cast_mut().cast(),
                (&raw const source).cast_mut().cast(),
                (&raw mut target).cast(),
                (&raw const elems).cast_mut().cast(),
            ];
            let config: *const Config = &raw const config;
            driver.call(
                "cuLaunchKernelEx",
                [config.cast_mut().cast(), function, (&raw mut params).cast(), none],
            )
        };
    let launch =
        |blocks, threads, shared, target| launch_of(function, blocks, threads, shared, target, false);
    assert_eq!(driver.call("cuStreamBeginCapture_v2", [stream, word(1)]), 0);
    say("first-launch-while-recording", launch_of(function, 1, 32, 0, memory, true));
    driver.call("cuStreamEndCapture", [stream, out]);
    say("right-launch", launch_of(function, 1, 32, 0, memory, true));
    say("too-many-threads", launch(1, 1056, 0, memory));
    say("no-blocks", launch(0, 32, 0, memory));
    say("too-much-shared-memory", launch(1, 32, 48 * 1024 + 1, memory));
    say("pointer-to-nothing", launch(1, 32, 0, word(4096)));
    let without = text.replace("\tgriddepcontrol.wait;\n", "");
    let late = without.replace("\tst.global", "\tgriddepcontrol.wait;\n\tst.global");
    for (what, changed) in [("overlap-without-wait", without), ("overlap-with-early-read", late)] {
        let changed = get(&std::ffi::CString::new(changed).expect("no NUL inside"));
        say(what, launch_of(changed, 1, 32, 0, memory, true));
    }

    let untimed = driver.make("cuEventCreate", [word(2)]);
    assert_eq!(driver.call("cuEventRecord", [untimed, stream]), 0);
    assert_eq!(driver.call("cuEventSynchronize", [untimed]), 0);
    say("time-of-untimed-event", driver.call("cuEventElapsedTime", [out, untimed, untimed]));

    let event = driver.make("cuEventCreate", [none]);
    for (mode, what) in [(0, "global"), (1, "thread"), (2, "relaxed")] {
        let begin = || assert_eq!(driver.call("cuStreamBeginCapture_v2", [stream, word(mode)]), 0);
        begin();
        assert_eq!(launch(1, 32, 0, memory), 0);
        say(&format!("{what}-synchronize-while-recording"), driver.call("cuStreamSynchronize", [stream]));
        say(&format!("{what}-end-spoiled"), driver.call("cuStreamEndCapture", [stream, out]));
        begin();
        say(&format!("{what}-allocate-while-recording"), driver.call("cuMemAlloc_v2", [out, word(16)]));
        say(&format!("{what}-end-after-allocation"), driver.call("cuStreamEndCapture", [stream, out]));
        begin();
        assert_eq!(driver.call("cuEventRecord", [event, stream]), 0);
        say(&format!("{what}-wait-for-recorded-event"), driver.call("cuEventSynchronize", [event]));
        let other = (context.addr(), stream.addr());
        let ended = std::thread::spawn(move || {
            let mut out: Word = null_mut();
            assert_eq!(driver.call("cuCtxSetCurrent", [word(other.0)]), 0);
            driver.call("cuStreamEndCapture", [word(other.1), (&raw mut out).cast()])
        });
        say(&format!("{what}-end-on-another-thread"), ended.join().expect("no panic"));
        driver.call("cuStreamEndCapture", [stream, out]);
    }
    say("end-nothing", driver.call("cuStreamEndCapture", [stream, out]));

    // Too few elements in the target: the kernel fails when it runs, and everything after it.
    let end = memory.wrapping_byte_add(4096 - 16);
    say("launch-that-will-fail", launch(1, 32, 0, end));
    say("call-before-it-ran", driver.call("cuMemsetD8Async", [memory, none, word(16), stream]));
    say("synchronize", driver.call("cuStreamSynchronize", [stream]));
    say("allocate-after", driver.call("cuMemAlloc_v2", [out, word(16)]));
    say("copy-after", driver.call("cuMemcpyDtoHAsync_v2", [pinned, memory, word(4), stream]));
    assert_eq!(driver.call("cuDevicePrimaryCtxRelease_v2", [none]), 0);
    say("after-release", driver.call("cuMemFree_v2", [memory]));
}

#[cfg(not(target_os = "linux"))]
fn main() {}
