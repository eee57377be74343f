"""Names that a model in C cannot have: C and C++, the C library, its headers, the engine and some
systems use them.
"""

from __future__ import annotations

import re

C_KEYWORDS = frozenset(
    """
auto break case char const continue default do double else enum extern float for goto if inline int long register restrict
return short signed sizeof static struct switch typedef union unsigned void volatile while
alignas alignof bool constexpr false nullptr static_assert thread_local true typeof typeof_unqual asm fortran
and and_eq bitand bitor catch char8_t char16_t char32_t class co_await co_return co_yield compl concept const_cast consteval
constinit decltype delete dynamic_cast explicit export friend mutable namespace new noexcept not not_eq operator or or_eq
private protected public reinterpret_cast requires static_cast template this throw try typeid typename using virtual wchar_t
xor xor_eq
""".split()
)

# a model of such a name would give a header that others take for the library's
HEADERS = frozenset(
    """
assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdalign stdarg stdatomic stdbit stdbool
stdckdint stddef stdint stdio stdlib stdnoreturn string tgmath threads time uchar wchar wctype
unistd memory malloc alloca strings fcntl endian features
""".split()
)

# objects, functions and macros of the C library, without their variants in f and l
LIBRARY = frozenset(
    """
abort abs atexit atof atoi atol atoll bsearch calloc div exit free getenv labs ldiv llabs lldiv malloc mblen mbstowcs mbtowc
qsort quick_exit rand realloc srand strtod strtof strtol strtold strtoll strtoul strtoull system wcstombs wctomb
memchr memcmp memcpy memmove memset strcat strchr strcmp strcoll strcpy strcspn strerror strlen strncat strncmp strncpy strpbrk
strrchr strspn strstr strtok strxfrm index rindex bcmp bcopy bzero strdup strndup stpcpy stpncpy strcasecmp strncasecmp mempcpy
clearerr fclose feof ferror fflush fgetc fgetpos fgets fopen fprintf fputc fputs fread freopen fscanf fseek fsetpos ftell
fwrite getc getchar gets perror printf putc putchar puts remove rename rewind scanf setbuf setvbuf snprintf sprintf sscanf
tmpfile tmpnam ungetc vfprintf vfscanf vprintf vscanf vsnprintf vsprintf vsscanf stdin stdout stderr
isalnum isalpha isblank iscntrl isdigit isgraph islower isprint ispunct isspace isupper isxdigit tolower toupper isascii toascii
asctime clock ctime difftime gmtime localtime mktime strftime longjmp setjmp raise setlocale localeconv
acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf erfc exp exp2 exp10 expm1 fabs fdim floor fma fmax fmin
fmod frexp hypot ilogb ldexp lgamma llrint llround log log10 log1p log2 logb lrint lround modf nan nearbyint nextafter
nexttoward pow pow10 remainder remquo rint round scalbln scalbn sin sincos sinh sqrt tan tanh tgamma trunc gamma drem significand
fpclassify isfinite isinf isnan isnormal signbit isgreater isless isunordered j0 j1 jn y0 y1 yn ffs ffsl ffsll
cabs cacos cacosh carg casin casinh catan catanh ccos ccosh cexp cimag clog conj cpow cproj creal csin csinh csqrt ctan ctanh
imaxabs imaxdiv iswalnum iswalpha towlower towupper wcslen wcscpy wmemcpy execl execle execlp execv execve execvp fork open
read write close unlink sleep dcgettext dgettext gettext strfmon
NULL EOF va_start va_arg va_end offsetof assert
""".split()
)

ENGINE = r"stw(_\w*)?|stepwell|main|readme|the_model|main_is_empty"
# types of stdint.h; what gcc defines on some machines; devices of Windows, whose files cannot be
# made
SYSTEMS = r"u?int\w*_t|\w*size_t|ptrdiff_t|max_align_t|unix|linux|i386|avr|arm|mips|sparc|con|prn|aux|nul|(com|lpt)\d"


def is_library_name(name: str) -> bool:
    """Whether the C library, one of its headers, the engine or a system has the C name ``name``, or
    a file of that name.
    """
    small = name.lower()  # files of some systems know no case
    plain = name[:-1] if name.endswith(("f", "l")) else name
    return (
        small in HEADERS
        or not LIBRARY.isdisjoint((name, plain))
        or bool(re.fullmatch(f"{ENGINE}|{SYSTEMS}", small))
    )
