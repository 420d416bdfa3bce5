"""Words that a name in a .proto must not be: generators escape them each in their own way, or not at all."""

import keyword

WORDS = {
    # With macros that system headers define, and what every message has.
    "C++": """
        alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t char8_t
        class co_await co_return co_yield compl concept const const_cast consteval constexpr constinit
        continue decltype default delete descriptor do double dynamic_cast else enum EOF errno explicit export
        extern false float for friend goto if inline int linux long major minor mutable namespace new noexcept
        not not_eq NULL nullptr operator or or_eq private protected public register reinterpret_cast requires
        return short signed sizeof static static_assert static_cast stderr stdin stdout struct swap switch
        template this thread_local throw true try typedef typeid typename union unix unsigned using virtual
        void volatile wchar_t while xor xor_eq
    """,
    "Go": """
        break case chan const continue default defer else fallthrough for func go goto if import interface map
        package range return select struct switch type var
    """,
    "Java": """
        abstract assert boolean break byte case catch char class const continue default do double else enum
        extends false final finally float for goto if implements import instanceof int interface long native
        new null package private protected public return short static strictfp super switch synchronized this
        throw throws transient true try void volatile while
    """,
    "JavaScript": """
        await break case catch class const continue debugger default delete do else enum export extends false
        finally for function if implements import in instanceof interface let new null package private
        protected prototype public return static super switch this throw true try typeof var void while with
        yield
    """,
    "C#": """
        abstract as base bool break byte case catch char checked class const continue decimal default delegate
        do double else enum event explicit extern false finally fixed float for foreach goto if implicit in
        int interface internal is lock long namespace new null object operator out override params private
        protected public readonly ref return sbyte sealed short sizeof stackalloc static string struct switch
        this throw true try typeof uint ulong unchecked unsafe ushort using virtual void volatile while
    """,
    "Rust": """
        abstract as async await become box break const continue crate do dyn else enum extern false final fn
        for if impl in let loop macro match mod move mut override priv pub ref return Self self static struct
        super trait true try type typeof unsafe unsized use virtual where while yield
    """,
}
RESERVED = {"Python": frozenset({*keyword.kwlist, *keyword.softkwlist})} | {
    language: frozenset(words.split()) for language, words in WORDS.items()
}
