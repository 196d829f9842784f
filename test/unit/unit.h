/*
 * unit.h - the smallest test harness that speaks TAP.
 *
 * A test program holds functions made with UNIT_TEST, which register
 * themselves in the order they are written, and a main that ends with
 * "return unit_run(argc, argv)". Each test prints "ok N - name" or
 * "not ok N - name"; a failed check prints a "#" line with its place and
 * values and lets the test go on, so that one run shows all that is wrong. A
 * word on the command line runs only the tests whose names contain it. The exit
 * status is 0 when all passed.
 *
 *	UNIT_TEST(adds_two_numbers)
 *	{
 *		UNIT_EQUAL_INT(1 + 1, 2);
 *	}
 *
 *	int
 *	main(int argc, char **argv)
 *	{
 *		return unit_run(argc, argv);
 *	}
 *
 * Tests run from the root of the repository and read their data from
 * test/golden.
 */
#ifndef MMGPT_UNIT_H
#define MMGPT_UNIT_H

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UNIT_MAX_TESTS 512
#define UNIT_MAX_NOTES 20		/* failed checks printed for one test */

#define UNIT_UNUSED __attribute__((unused))

typedef struct UnitTest
{
	const char *name;
	void		(*function) (void);
} UnitTest;

static UnitTest unit_tests[UNIT_MAX_TESTS];
static int	unit_count;
static int	unit_failures;		/* failed checks of the running test */
static const char *unit_skipped;	/* why the running test was skipped, or NULL */

/* Define and register a test. */
#define UNIT_TEST(test) \
	static void unit_test_##test(void); \
	__attribute__((constructor)) static void \
	unit_register_##test(void) \
	{ \
		unit_add(#test, unit_test_##test); \
	} \
	static void \
	unit_test_##test(void)

/* Remember a test; called before main. */
static UNIT_UNUSED void
unit_add(const char *name, void (*function) (void))
{
	if (unit_count == UNIT_MAX_TESTS)
	{
		fprintf(stderr, "raise UNIT_MAX_TESTS\n");
		exit(2);
	}
	unit_tests[unit_count].name = name;
	unit_tests[unit_count].function = function;
	unit_count++;
}

/* Count a failed check of the running test and print where and why. Returns false. */
static UNIT_UNUSED bool __attribute__((format(printf, 3, 4)))
unit_fail(const char *file, int line, const char *format, ...)
{
	va_list		arguments;

	if (unit_failures++ >= UNIT_MAX_NOTES)
		return false;
	printf("# %s:%d: ", file, line);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
	return false;
}

/*
 * The checks. Each is an expression that is true when the check held, so that a
 * test can return early: if (!UNIT_CHECK(p != NULL)) return;
 */
#define UNIT_CHECK(condition) \
	((condition) ? true : unit_fail(__FILE__, __LINE__, "%s", #condition))
#define UNIT_FAIL(...) unit_fail(__FILE__, __LINE__, __VA_ARGS__)
#define UNIT_EQUAL_INT(actual, expected) \
	unit_equal_int(__FILE__, __LINE__, #actual, (long long) (actual), (long long) (expected))
#define UNIT_EQUAL_TEXT(actual, expected) \
	unit_equal_text(__FILE__, __LINE__, #actual, (actual), (expected))
#define UNIT_CONTAINS(text, part) \
	unit_contains(__FILE__, __LINE__, #text, (text), (part))
#define UNIT_NEAR(actual, expected, tolerance) \
	unit_near(__FILE__, __LINE__, #actual, (actual), (expected), (tolerance))
#define UNIT_NEAR_ALL(actual, expected, count, tolerance) \
	unit_near_all(__FILE__, __LINE__, #actual, (actual), (expected), (count), (tolerance))

/* Leave the running test, reported as passed with "# SKIP reason". */
#define UNIT_SKIP(reason) \
	do { \
		unit_skipped = (reason); \
		return; \
	} while (0)

/* Check that two whole numbers are equal. */
static UNIT_UNUSED bool
unit_equal_int(const char *file, int line, const char *what, long long actual, long long expected)
{
	if (actual == expected)
		return true;
	return unit_fail(file, line, "%s is %lld, not %lld", what, actual, expected);
}

/* Check that two texts are equal; NULL equals NULL only. */
static UNIT_UNUSED bool
unit_equal_text(const char *file, int line, const char *what, const char *actual,
				const char *expected)
{
	if (actual == NULL || expected == NULL)
	{
		if (actual == expected)
			return true;
	}
	else if (strcmp(actual, expected) == 0)
		return true;
	return unit_fail(file, line, "%s is \"%s\", not \"%s\"", what, actual ? actual : "(null)",
					 expected ? expected : "(null)");
}

/* Check that text holds part. */
static UNIT_UNUSED bool
unit_contains(const char *file, int line, const char *what, const char *text, const char *part)
{
	if (text != NULL && strstr(text, part) != NULL)
		return true;
	return unit_fail(file, line, "%s is \"%s\" and lacks \"%s\"", what, text ? text : "(null)",
					 part);
}

/* Check that |actual - expected| <= tolerance; a NaN fails. */
static UNIT_UNUSED bool
unit_near(const char *file, int line, const char *what, double actual, double expected,
		  double tolerance)
{
	if (fabs(actual - expected) <= tolerance)
		return true;
	return unit_fail(file, line, "%s is %.9g, not %.9g within %g", what, actual, expected,
					 tolerance);
}

/* Check count floats; reports the worst element. */
static UNIT_UNUSED bool
unit_near_all(const char *file, int line, const char *what, const float *actual,
			  const float *expected, size_t count, double tolerance)
{
	size_t		worst = 0;
	double		largest = -1.0;

	for (size_t i = 0; i < count; i++)
	{
		double		difference = fabs((double) actual[i] - (double) expected[i]);

		if (isnan(difference))
			difference = INFINITY;
		if (difference > largest)
		{
			largest = difference;
			worst = i;
		}
	}
	if (largest <= tolerance)
		return true;
	return unit_fail(file, line, "%s[%zu] is %.9g, not %.9g within %g", what, worst,
					 (double) actual[worst], (double) expected[worst], tolerance);
}

/*
 * Read a whole file into memory of the C heap, with a NUL behind it. Ends the
 * program when the file cannot be read: a test without its data proves nothing.
 */
static UNIT_UNUSED void *
unit_read_file(const char *path, size_t *length)
{
	FILE	   *file = fopen(path, "rb");
	char	   *bytes = NULL;
	long		size = -1;

	if (file != NULL && fseek(file, 0, SEEK_END) == 0)
		size = ftell(file);
	if (size >= 0 && fseek(file, 0, SEEK_SET) == 0)
		bytes = malloc((size_t) size + 1);
	if (bytes == NULL || fread(bytes, 1, (size_t) size, file) != (size_t) size)
	{
		printf("Bail out! cannot read %s\n", path);
		exit(2);
	}
	fclose(file);
	bytes[size] = '\0';
	if (length != NULL)
		*length = (size_t) size;
	return bytes;
}

/* Run one test and print its line. Returns true when it passed. */
static bool
unit_run_one(int number, const UnitTest *test)
{
	unit_failures = 0;
	unit_skipped = NULL;
	test->function();
	if (unit_failures > UNIT_MAX_NOTES)
		printf("# %d failed checks in all\n", unit_failures);
	printf("%s %d - %s", unit_failures == 0 ? "ok" : "not ok", number, test->name);
	if (unit_skipped != NULL)
		printf(" # SKIP %s", unit_skipped);
	printf("\n");
	fflush(stdout);
	return unit_failures == 0;
}

/* Run the registered tests that the command line asks for. Returns the exit status. */
static UNIT_UNUSED int
unit_run(int argc, char **argv)
{
	int			run = 0;
	int			failed = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 0; i < unit_count; i++)
	{
		if (argc > 1 && strstr(unit_tests[i].name, argv[1]) == NULL)
			continue;
		run++;
		if (!unit_run_one(run, &unit_tests[i]))
			failed++;
	}
	printf("1..%d\n", run);
	if (failed > 0)
		printf("# %d of %d tests failed\n", failed, run);
	return failed == 0 && run > 0 ? 0 : 1;
}

#endif
