/*
 * fuzz_image.c - damaged pictures must be refused or taken, and never more.
 *
 *	fuzz_image COUNT [SEED [NUMBER]]
 *
 * Takes the golden pictures, damages one of them at each turn, and reads header and
 * pixels by both rules. Build it with the sanitizers: they are the judge. Beside
 * them each failure must carry a code and a message that fit, and a picture that is
 * taken once must give the same square again.
 *
 * Turn NUMBER of a SEED depends on nothing else: when a turn fails, running it
 * alone (with NUMBER) repeats it. Pictures are read from test/golden, so run it
 * from the root of the repository. The exit status is 0 when all went well.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

#define MAX_PICTURES 128
#define MAX_FILE_BYTES 100000	/* larger golden files are left out, as they are slow */
#define MAX_PIXELS 400000		/* of a picture that is decoded */
#define SIZE 24
#define MAX_CHANGES 3

static const char *const folders[] = {"test/golden/preprocess/images", "test/golden/images"};

typedef struct Picture
{
	char		name[400];
	uint8_t    *bytes;
	size_t		length;
} Picture;

typedef struct Fuzz
{
	Picture		pictures[MAX_PICTURES];
	int			count;
	uint64_t	state;			/* of the random numbers */
	uint8_t    *bytes;			/* the damaged file */
	size_t		length;
	Arena	   *arena;
	long		taken;
	long		refused;
} Fuzz;

/* A random number below limit (splitmix64). */
static uint64_t
draw(Fuzz *fuzz, uint64_t limit)
{
	uint64_t	z = fuzz->state += 0x9E3779B97F4A7C15;

	z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
	z = (z ^ z >> 27) * 0x94D049BB133111EB;
	return (z ^ z >> 31) % limit;
}

/* Read one file, unless it is large or there is no room. */
static void
load_picture(Fuzz *fuzz, const char *folder, const char *name)
{
	Picture    *picture = &fuzz->pictures[fuzz->count];
	FILE	   *file;
	long		size = 0;

	if (name[0] == '.' || fuzz->count == MAX_PICTURES)
		return;
	snprintf(picture->name, sizeof(picture->name), "%s/%s", folder, name);
	file = fopen(picture->name, "rb");
	if (file == NULL)
		return;
	if (fseek(file, 0, SEEK_END) == 0)
		size = ftell(file);
	rewind(file);
	if (size > 0 && size <= MAX_FILE_BYTES)
	{
		picture->bytes = malloc((size_t) size);
		picture->length = fread(picture->bytes, 1, (size_t) size, file);
		fuzz->count++;
	}
	fclose(file);
}

/* Order by name: readdir's order is the file system's. */
static int
compare_names(const void *a, const void *b)
{
	return strcmp(((const Picture *) a)->name, ((const Picture *) b)->name);
}

/* Read the pictures of all folders. */
static bool
load_pictures(Fuzz *fuzz)
{
	for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++)
	{
		DIR		   *folder = opendir(folders[i]);
		struct dirent *entry;

		if (folder == NULL)
			continue;
		while ((entry = readdir(folder)) != NULL)
			load_picture(fuzz, folders[i], entry->d_name);
		closedir(folder);
	}
	qsort(fuzz->pictures, (size_t) fuzz->count, sizeof(Picture), compare_names);
	return fuzz->count > 0;
}

/* Write a number that parsers trip over. */
static void
put_extreme(Fuzz *fuzz, size_t place)
{
	static const uint32_t numbers[] = {0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF,
									   0x7FFFFFFF, 0x80000000, 0xFFFFFFFF};
	uint32_t	number = numbers[draw(fuzz, sizeof(numbers) / sizeof(numbers[0]))];
	int			size = 1 << draw(fuzz, 3);

	for (int i = size - 1; i >= 0 && place < fuzz->length; i--)
		fuzz->bytes[place++] = (uint8_t) (number >> 8 * i);
}

/* Copy a part of the file, or of another one, to some place. */
static void
splice(Fuzz *fuzz, size_t place)
{
	const Picture *other = &fuzz->pictures[draw(fuzz, (uint64_t) fuzz->count)];
	size_t		from = draw(fuzz, other->length);
	size_t		length = 1 + draw(fuzz, 64);

	for (size_t i = 0; i < length && place + i < fuzz->length && from + i < other->length; i++)
		fuzz->bytes[place + i] = other->bytes[from + i];
}

/* Take bytes out, so that what follows moves. */
static void
cut_out(Fuzz *fuzz, size_t place)
{
	size_t		length = 1 + draw(fuzz, 16);

	if (place + length >= fuzz->length)
		return;
	memmove(fuzz->bytes + place, fuzz->bytes + place + length, fuzz->length - place - length);
	fuzz->length -= length;
}

/* Make one change; half of them near the beginning, where the headers are. */
static void
change(Fuzz *fuzz)
{
	size_t		reach = draw(fuzz, 2) == 0 && fuzz->length > 800 ? 800 : fuzz->length;
	size_t		place = draw(fuzz, reach);

	switch (draw(fuzz, 8))
	{
		case 0:
			splice(fuzz, place);
			break;
		case 1:
			cut_out(fuzz, place);
			break;
		case 2:
		case 3:
			put_extreme(fuzz, place);
			break;
		case 4:
			fuzz->bytes[place] ^= (uint8_t) (1 << draw(fuzz, 8));
			break;
		default:
			fuzz->bytes[place] = (uint8_t) draw(fuzz, 256);
	}
}

/* The checksum of a PNG chunk (PNG specification, annex D). */
static uint32_t
chunk_checksum(const uint8_t *bytes, size_t length)
{
	uint32_t	sum = 0xFFFFFFFF;

	for (size_t i = 0; i < length; i++)
	{
		sum ^= bytes[i];
		for (int bit = 0; bit < 8; bit++)
			sum = (sum & 1) != 0 ? sum >> 1 ^ 0xEDB88320 : sum >> 1;
	}
	return ~sum;
}

/* Make the checksums of a PNG file right again, so that damage gets past them. */
static void
repair_checksums(Fuzz *fuzz)
{
	size_t		place = 8;

	while (fuzz->length > place && fuzz->length - place >= 12)
	{
		uint8_t    *chunk = fuzz->bytes + place;
		size_t		size = (size_t) chunk[0] << 24 | (size_t) chunk[1] << 16 |
						   (size_t) chunk[2] << 8 | chunk[3];
		uint32_t	sum;

		if (size > fuzz->length - place - 12)
			return;
		sum = chunk_checksum(chunk + 4, size + 4);
		for (int i = 0; i < 4; i++)
			chunk[8 + size + (size_t) i] = (uint8_t) (sum >> (24 - 8 * i));
		place += 12 + size;
	}
}

/* Damage a picture, into a block of exactly its length: a byte read behind it is found. */
static const Picture *
damage(Fuzz *fuzz)
{
	const Picture *picture = &fuzz->pictures[draw(fuzz, (uint64_t) fuzz->count)];
	uint8_t    *exact;

	fuzz->bytes = malloc(picture->length);
	memcpy(fuzz->bytes, picture->bytes, picture->length);
	fuzz->length = picture->length;
	for (uint64_t changes = 1 + draw(fuzz, MAX_CHANGES); changes > 0; changes--)
		change(fuzz);
	if (draw(fuzz, 8) == 0)
		fuzz->length = draw(fuzz, fuzz->length);
	if (draw(fuzz, 4) != 0)
		repair_checksums(fuzz);
	exact = malloc(fuzz->length > 0 ? fuzz->length : 1);
	memcpy(exact, fuzz->bytes, fuzz->length);
	free(fuzz->bytes);
	fuzz->bytes = exact;
	return picture;
}

/* True when a failure says something that fits. */
static bool
fits(const Status *status)
{
	return status->message[0] != '\0' &&
		(status->code == STATUS_INVALID_IMAGE || status->code == STATUS_IMAGE_TOO_LARGE);
}

/* Decode by some rules into pixels. Returns false when that broke a promise. */
static bool
decode(Fuzz *fuzz, ImageRules rules, uint8_t *pixels, bool *taken)
{
	ImageLimits limits = {MAX_PIXELS};
	Status		status;

	status_clear(&status);
	arena_reset(fuzz->arena);
	*taken = image_preprocess(fuzz->bytes, fuzz->length, rules, &limits, SIZE, fuzz->arena,
							  pixels, &status);
	return *taken ? status_good(&status) : fits(&status);
}

/* Run one turn. Returns false when a promise was broken. */
static bool
run_turn(Fuzz *fuzz, uint64_t seed, uint64_t number)
{
	static uint8_t first[SIZE * SIZE * 3];
	static uint8_t second[SIZE * SIZE * 3];
	const Picture *picture;
	ImageInfo	info;
	Status		status;
	bool		good = true;

	fuzz->state = seed * 0x100000001B3 + number;
	picture = damage(fuzz);
	status_clear(&status);
	if (image_read_info(fuzz->bytes, fuzz->length, &info, &status))
		good = info.width > 0 && info.height > 0 && info.color != NULL && info.orientation >= 1 &&
			   info.orientation <= 8;
	else
		good = fits(&status);
	for (int rules = IMAGE_RULES_DISPLAY; rules <= IMAGE_RULES_ORIGINAL; rules++)
	{
		bool		taken;
		bool		again;

		good = decode(fuzz, (ImageRules) rules, first, &taken) && good;
		*(taken ? &fuzz->taken : &fuzz->refused) += 1;
		if (taken && number % 8 == 0)
			good = decode(fuzz, (ImageRules) rules, second, &again) && again &&
				memcmp(first, second, sizeof(first)) == 0 && good;
	}
	if (!good)
		printf("turn %llu of seed %llu (%s) broke a promise\n", (unsigned long long) number,
			   (unsigned long long) seed, picture->name);
	free(fuzz->bytes);
	return good;
}

int
main(int argc, char **argv)
{
	static Fuzz fuzz;
	uint64_t	count = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;
	uint64_t	seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
	uint64_t	first = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
	uint64_t	failed = 0;

	if (count == 0)
	{
		fprintf(stderr, "usage: fuzz_image COUNT [SEED [NUMBER]]\n");
		return 2;
	}
	fuzz.arena = arena_create();
	if (fuzz.arena == NULL || !load_pictures(&fuzz))
	{
		fprintf(stderr, "fuzz_image: no pictures; run it from the root of the repository\n");
		return 2;
	}
	for (uint64_t i = first; i < first + count; i++)
		failed += run_turn(&fuzz, seed, i) ? 0 : 1;
	printf("%llu turns of seed %llu: %ld decoded, %ld refused, %llu wrong\n",
		   (unsigned long long) count, (unsigned long long) seed, fuzz.taken, fuzz.refused,
		   (unsigned long long) failed);
	for (int i = 0; i < fuzz.count; i++)
		free(fuzz.pictures[i].bytes);
	arena_free(fuzz.arena);
	return failed == 0 ? 0 : 1;
}
