/*
 * row_store.c - the rows of a training, each picture once, and the order in which rows pass by.
 *
 * Rows with pictures and language-only rows are two streams. A micro step takes the next
 * batch_size rows of each; a stream that ends begins anew, in another order when shuffled. What
 * row stands at a position is a function of seed and position, so a training can go on from
 * any micro step.
 */
#include <stdlib.h>
#include <string.h>

#include "sampling.h"
#include "trainer_internal.h"

#define FIRST_ROWS 256
#define FIRST_BUCKETS 256

/* SplitMix64's scrambling (Steele, Lea, Flood 2014). */
static uint64_t
scramble(uint64_t x)
{
	x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
	x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
	return x ^ x >> 31;
}

double
train_random(uint64_t seed, int stream, uint64_t counter)
{
	return sampling_random(scramble(seed + scramble((uint64_t) stream + 1)), counter);
}

/* A permutation of 0 .. count - 1 (Fisher, Yates), from random numbers at first and behind it. */
static void
permute(int *order, int count, uint64_t seed, int stream, uint64_t first)
{
	for (int i = 0; i < count; i++)
		order[i] = i;
	for (int i = count - 1; i > 0; i--)
	{
		int			j = (int) (train_random(seed, stream, first + (uint64_t) i) * (i + 1));
		int			swap = order[i];

		order[i] = order[j];
		order[j] = swap;
	}
}

bool
row_store_begin(RowStore *store, Status *status)
{
	memset(store, 0, sizeof(*store));
	digest_begin(&store->digest_state);
	store->arena = arena_create();
	return store->arena != NULL || status_out_of_memory(status, 0);
}

void
stored_picture_forget(StoredPicture *picture)
{
	free((void *) picture->picture.pixels);
	free((void *) picture->picture.normalised);
	picture->picture = (Picture) {NULL, NULL};
}

void
row_store_free(RowStore *store)
{
	for (int i = 0; i < store->picture_count; i++)
		stored_picture_forget(&store->pictures[i]);
	free(store->pictures);
	free(store->buckets);
	free(store->rows);
	arena_free(store->arena);
}

/* Grow an array to hold one more element. */
static bool
make_room(void **array, int count, int *capacity, size_t size, Status *status)
{
	int			wanted = *capacity > 0 ? *capacity * 2 : FIRST_ROWS;
	void	   *grown;

	if (count < *capacity)
		return true;
	if (wanted > 1 << 28)
		return status_out_of_memory(status, (size_t) wanted * size);
	grown = realloc(*array, (size_t) wanted * size);
	if (grown == NULL)
		return status_out_of_memory(status, (size_t) wanted * size);
	*array = grown;
	*capacity = wanted;
	return true;
}

/* ---- pictures ---- */

/* Bytes of a picture as it is given. */
static size_t
picture_bytes(const ModelConfig *config, const Picture *picture)
{
	size_t		side = (size_t) config->vision.image_size;

	return side * side * 3 * (picture->pixels != NULL ? sizeof(uint8_t) : sizeof(float));
}

static void
digest_picture(const Picture *picture, size_t bytes, uint8_t digest[DIGEST_SIZE])
{
	DigestState state;

	digest_begin(&state);
	digest_add(&state, &bytes, sizeof(bytes));
	digest_add(&state, picture->pixels != NULL ? (const void *) picture->pixels
											   : (const void *) picture->normalised, bytes);
	digest_end(&state, digest);
}

/* The bucket of a digest: the one that holds it, or the empty one where it belongs. */
static int *
find_bucket(const RowStore *store, const uint8_t digest[DIGEST_SIZE])
{
	uint64_t	hash;

	memcpy(&hash, digest, sizeof(hash));
	for (;; hash++)
	{
		int		   *bucket = &store->buckets[hash % (uint64_t) store->bucket_count];

		if (*bucket == 0 ||
			memcmp(store->pictures[*bucket - 1].digest, digest, DIGEST_SIZE) == 0)
			return bucket;
	}
}

/* Keep at least half of the buckets empty. */
static bool
grow_buckets(RowStore *store, Status *status)
{
	int			wanted = store->bucket_count > 0 ? store->bucket_count * 2 : FIRST_BUCKETS;
	int		   *buckets;

	if (store->picture_count * 2 < store->bucket_count)
		return true;
	buckets = calloc((size_t) wanted, sizeof(int));
	if (buckets == NULL)
		return status_out_of_memory(status, (size_t) wanted * sizeof(int));
	free(store->buckets);
	store->buckets = buckets;
	store->bucket_count = wanted;
	for (int i = 0; i < store->picture_count; i++)
		*find_bucket(store, store->pictures[i].digest) = i + 1;
	return true;
}

/* The index of a picture, taken over if it is a new one; -1 when memory is out. */
static int
intern_picture(RowStore *store, const ModelConfig *config, const Picture *picture, Status *status)
{
	size_t		bytes = picture_bytes(config, picture);
	StoredPicture added;
	int		   *bucket;
	void	   *copy;

	digest_picture(picture, bytes, added.digest);
	if (!grow_buckets(store, status) ||
		!make_room((void **) &store->pictures, store->picture_count, &store->picture_capacity,
				   sizeof(StoredPicture), status))
		return -1;
	bucket = find_bucket(store, added.digest);
	if (*bucket != 0)
		return *bucket - 1;
	copy = malloc(bytes);
	if (copy == NULL)
	{
		status_out_of_memory(status, bytes);
		return -1;
	}
	memcpy(copy, picture->pixels != NULL ? (const void *) picture->pixels
										 : (const void *) picture->normalised, bytes);
	added.picture = picture->pixels != NULL ? (Picture) {copy, NULL} : (Picture) {NULL, copy};
	store->pictures[store->picture_count++] = added;
	store->bytes += bytes;
	*bucket = store->picture_count;
	return store->picture_count - 1;
}

/* ---- rows ---- */

/* Copy ids and labels up to count; work out what each token looks at. */
static bool
copy_tokens(RowStore *store, const ModelConfig *config, const TrainingRow *row, StoredRow *stored,
			Status *status)
{
	size_t		count = (size_t) stored->count;
	int			marks;

	stored->ids = arena_take_array(store->arena, 3 * count, sizeof(int32_t));
	if (stored->ids == NULL)
		return status_out_of_memory(status, 3 * count * sizeof(int32_t));
	stored->labels = stored->ids + count;
	stored->looks_at = stored->labels + count;
	memcpy(stored->ids, row->ids, count * sizeof(int32_t));
	memcpy(stored->labels, row->labels, count * sizeof(int32_t));
	marks = sequence_assign_pictures(config, stored->ids, stored->count, stored->looks_at);
	stored->picture_count = row->picture_count < marks ? row->picture_count : marks;
	/* the original's collate function trains no <image> mark of an image row */
	for (size_t i = 0; i < count && stored->picture_count > 0; i++)
		if (stored->labels[i] == config->image)
			stored->labels[i] = LABEL_NONE;
	stored->trained = training_row_labels(stored->labels, stored->count);
	store->bytes += 3 * count * sizeof(int32_t) + sizeof(StoredRow);
	return stored->trained > 0 ||
		status_set(status, STATUS_INVALID_ARGUMENT,
				   "no token of a response is left within %d tokens", stored->count);
}

static bool
copy_pictures(RowStore *store, const ModelConfig *config, const TrainingRow *row,
			  StoredRow *stored, Status *status)
{
	stored->pictures = arena_take_array(store->arena, (size_t) stored->picture_count, sizeof(int));
	if (stored->pictures == NULL)
		return status_out_of_memory(status, (size_t) stored->picture_count * sizeof(int));
	for (int i = 0; i < stored->picture_count; i++)
	{
		stored->pictures[i] = intern_picture(store, config, &row->pictures[i], status);
		if (stored->pictures[i] < 0)
			return false;
	}
	return true;
}

static void
digest_row(RowStore *store, const StoredRow *row)
{
	DigestState *state = &store->digest_state;

	digest_add(state, &row->count, sizeof(row->count));
	digest_add(state, row->ids, 2 * (size_t) row->count * sizeof(int32_t));
	digest_add(state, &row->picture_count, sizeof(row->picture_count));
	for (int i = 0; i < row->picture_count; i++)
		digest_add(state, store->pictures[row->pictures[i]].digest, DIGEST_SIZE);
}

bool
row_store_add(RowStore *store, const ModelConfig *config, const TrainingRow *row, int max_length,
			  Status *status)
{
	StoredRow	stored = {.count = row->count < max_length ? row->count : max_length};

	if (!training_row_check(config, row, status) ||
		!make_room((void **) &store->rows, store->count, &store->capacity, sizeof(StoredRow),
				   status) ||
		!copy_tokens(store, config, row, &stored, status) ||
		!copy_pictures(store, config, row, &stored, status))
		return false;
	store->rows[store->count++] = stored;
	digest_row(store, &stored);
	return true;
}

/* ---- streams ---- */

/* Deal the rows of one kind out to a stream. */
static bool
form_stream(RowStore *store, const TrainOptions *options, RowKind kind, Status *status)
{
	RowStream  *stream = &store->streams[kind];
	int		   *rows = arena_take_array(store->arena, (size_t) store->count, sizeof(int));
	int		   *order = arena_take_array(store->arena, (size_t) store->count, sizeof(int));
	bool	   *held_out = arena_take(store->arena, (size_t) store->count);
	int			count = 0;

	stream->trained = arena_take_array(store->arena, (size_t) store->count, sizeof(int));
	stream->held_out = arena_take_array(store->arena, (size_t) store->count, sizeof(int));
	if (rows == NULL || order == NULL || held_out == NULL || stream->trained == NULL ||
		stream->held_out == NULL)
		return status_out_of_memory(status, (size_t) store->count * sizeof(int));
	for (int i = 0; i < store->count; i++)
		if ((store->rows[i].picture_count > 0) == (kind == ROWS_IMAGE))
			rows[count++] = i;
	permute(order, count, options->seed, RANDOM_HOLD_OUT_IMAGE + kind, 0);
	for (int i = 0; i < (int) (options->validation * count + 0.5) && i < count - 1; i++)
		held_out[order[i]] = true;
	for (int i = 0; i < count; i++)
		if (held_out[i])
			stream->held_out[stream->held_out_count++] = rows[i];
		else
			stream->trained[stream->trained_count++] = rows[i];
	stream->order = order;
	stream->epoch = -1;
	return true;
}

bool
row_store_finish(RowStore *store, const TrainOptions *options, Status *status)
{
	if (store->count == 0)
		return status_set(status, STATUS_INVALID_ARGUMENT, "there are no rows to train on");
	for (int kind = 0; kind < ROW_KINDS; kind++)
		if (!form_stream(store, options, (RowKind) kind, status))
			return false;
	digest_end(&store->digest_state, store->digest);
	return true;
}

int
row_stream_batch(const RowStream *stream, const TrainOptions *options)
{
	return stream->trained_count < options->batch_size ? stream->trained_count
													   : options->batch_size;
}

int
row_stream_at(RowStream *stream, const TrainOptions *options, RowKind kind, int64_t position)
{
	int64_t		epoch = position / stream->trained_count;
	int			place = (int) (position % stream->trained_count);

	if (!options->shuffle)
		return stream->trained[place];
	if (epoch != stream->epoch)
		permute(stream->order, stream->trained_count, options->seed,
				RANDOM_SHUFFLE_IMAGE + (int) kind,
				(uint64_t) epoch * (uint64_t) stream->trained_count);
	stream->epoch = epoch;
	return stream->trained[stream->order[place]];
}
