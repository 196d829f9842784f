-- what the header of an image says
SELECT name, mmgpt_image_info(image) - 'bytes' AS info FROM pictures ORDER BY name;

SELECT (mmgpt_image_info(image)->>'bytes')::int = length(image) AS all_bytes
FROM pictures WHERE image IS NOT NULL;

-- images inside the row, outside, compressed or not
CREATE TEMP TABLE stored (how text, image bytea);
INSERT INTO stored SELECT 'as usual', image FROM pictures WHERE name = 'bicycles';
ALTER TABLE stored ALTER image SET STORAGE EXTERNAL;
INSERT INTO stored SELECT 'outside', image || ''::bytea FROM pictures WHERE name = 'bicycles';
ALTER TABLE stored ALTER image SET STORAGE PLAIN;
INSERT INTO stored SELECT 'small, inside', substr(image, 1, 2000) FROM pictures WHERE name = 'bicycles';
SELECT how, mmgpt_image_info(image)->>'width' AS width FROM stored ORDER BY how;
